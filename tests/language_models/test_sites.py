from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AttentionInterface, GPT2Config, OPTConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from palinka.errors import InputError
from palinka.language_models import LanguageModel
from palinka.language_models.sites import (
    Sites,
    Tap,
    by_token,
    find_sites,
    output_tensor,
    reading,
    replacing,
    with_output_tensor,
)


@pytest.fixture(scope="module")
def sites() -> Sites:
    # At this size the weights of each layer alone would take 3 GB.
    return find_sites(GPT2Config(n_embd=8192, n_head=64, n_layer=5))


def test_sites_of_a_large_model_are_known_without_its_weights(sites: Sites) -> None:
    assert sites.width("hidden.5") == 8192
    assert sites.width("blocks.4.mlp.post") == 4 * 8192
    assert sites.width("transformer.h.0.attn.c_attn") == 3 * 8192
    assert sites.width("lm_head") == 50257
    assert len(sites.named) == 5 * 8 + 6


def test_the_middle_is_half_the_layers_rounded_down(sites: Sites) -> None:
    assert sites.resolve("blocks.middle.mlp.pre") == "blocks.2.mlp.pre"
    assert sites.resolve("blocks.4.attn.q") == "blocks.4.attn.q"
    assert sites.resolve("transformer.h.3.mlp.c_fc") == "transformer.h.3.mlp.c_fc"


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("blocks.2.mlp.prre", r"no site 'blocks.2.mlp.prre'.* nearest are blocks.2.mlp.pre"),
        ("hidden.6", r"5 blocks, so give hidden.0 to hidden.5"),
        ("blocks.5.mlp.pre", r"5 blocks, so give blocks.0 to blocks.4"),
        ("blocks.-1.mlp.pre", "no site"),
        ("", "no site"),
        ("transformer.h", "does not give one vector per token"),
        ("transformer.h.7.mlp.c_fc", "no site"),
    ],
)
def test_a_site_that_is_not_there_is_refused_with_those_that_are(
    sites: Sites, site: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        sites.width(site)
    text = str(error.value)
    assert "\n" not in text
    assert "hidden.{0..5}, blocks.{0..4}.attn.q" in text
    assert "blocks.{0..4}.mlp.pre" in text


def test_other_families_have_their_module_paths() -> None:
    config = OPTConfig(
        hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50
    )
    sites = find_sites(config)
    assert sites.named == {}
    assert sites.width("model.decoder.layers.1.fc1") == 32
    with pytest.raises(InputError, match=r"modules are .*model.decoder.layers.\{0..1\}.fc1"):
        sites.resolve("blocks.0.mlp.pre")


def test_finding_sites_leaves_random_numbers_and_the_configuration_alone() -> None:
    config = GPT2Config(n_embd=16, n_head=2, n_layer=1)
    before, described = torch.get_rng_state(), config.to_dict()
    find_sites(config)
    assert torch.equal(torch.get_rng_state(), before)
    assert config.to_dict() == described


IDS = torch.tensor([[5, 77, 901, 4000, 12, 3], [8, 1, 2, 600, 700, 800]])

# Module and side of each site, written out for block 1.
BY_HAND = {
    "gpt2": {
        "resid": ("transformer.h.1", "output"),
        "mlp.pre": ("transformer.h.1.mlp.c_fc", "output"),
        "mlp.post": ("transformer.h.1.mlp.c_proj", "input"),
        "mlp.out": ("transformer.h.1.mlp.c_proj", "output"),
        "attn.out": ("transformer.h.1.attn.c_proj", "output"),
    },
    "gpt_neo": {
        "resid": ("transformer.h.1", "output"),
        "mlp.pre": ("transformer.h.1.mlp.c_fc", "output"),
        "mlp.post": ("transformer.h.1.mlp.c_proj", "input"),
        "mlp.out": ("transformer.h.1.mlp.c_proj", "output"),
        "attn.q": ("transformer.h.1.attn.attention.q_proj", "output"),
        "attn.k": ("transformer.h.1.attn.attention.k_proj", "output"),
        "attn.v": ("transformer.h.1.attn.attention.v_proj", "output"),
        "attn.out": ("transformer.h.1.attn.attention.out_proj", "output"),
    },
    "gpt_neox": {
        "resid": ("gpt_neox.layers.1", "output"),
        "mlp.pre": ("gpt_neox.layers.1.mlp.dense_h_to_4h", "output"),
        "mlp.post": ("gpt_neox.layers.1.mlp.dense_4h_to_h", "input"),
        "mlp.out": ("gpt_neox.layers.1.mlp.dense_4h_to_h", "output"),
        "attn.out": ("gpt_neox.layers.1.attention.dense", "output"),
    },
    "llama": {
        "resid": ("model.layers.1", "output"),
        "mlp.pre": ("model.layers.1.mlp.gate_proj", "output"),
        "mlp.post": ("model.layers.1.mlp.down_proj", "input"),
        "mlp.out": ("model.layers.1.mlp.down_proj", "output"),
        "attn.q": ("model.layers.1.self_attn.q_proj", "output"),
        "attn.k": ("model.layers.1.self_attn.k_proj", "output"),
        "attn.v": ("model.layers.1.self_attn.v_proj", "output"),
        "attn.out": ("model.layers.1.self_attn.o_proj", "output"),
    },
}


def read_by_hand(model: LanguageModel, path: str, side: str) -> Tensor:
    seen = []

    def hook(_module: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(inputs[0] if side == "input" else output)

    handle = model.model.get_submodule(path).register_forward_hook(hook)
    with torch.no_grad():
        model.model(IDS)
    handle.remove()
    found = seen[0]
    return found[0] if isinstance(found, tuple) else found


@torch.no_grad()
def test_hidden_sites_are_the_hidden_states_of_transformers(any_model: LanguageModel) -> None:
    expected = any_model.model(IDS, output_hidden_states=True).hidden_states
    sites = [f"hidden.{i}" for i in range(any_model.n_layers + 1)]
    acts = any_model.read(IDS, sites)
    assert len(expected) == len(sites)
    for site, states in zip(sites, expected, strict=True):
        assert torch.equal(acts[site], states), site
        assert torch.equal(any_model.read(IDS, [site])[site], states), site


@pytest.mark.parametrize("family", sorted(BY_HAND))
def test_sites_are_what_hooks_placed_by_hand_see(
    family: str, models: dict[str, LanguageModel]
) -> None:
    model = models[family]
    acts = model.read(IDS, [f"blocks.1.{site}" for site in BY_HAND[family]])
    for site, (path, side) in BY_HAND[family].items():
        assert torch.equal(acts[f"blocks.1.{site}"], read_by_hand(model, path, side)), site


def test_the_mlp_is_gate_times_up_in_llama(models: dict[str, LanguageModel]) -> None:
    mlp = models["llama"].model.get_submodule("model.layers.2.mlp")
    up = "model.layers.2.mlp.up_proj"
    acts = models["llama"].read(IDS, ["blocks.2.mlp.pre", "blocks.2.mlp.post", up])
    expected = mlp.act_fn(acts["blocks.2.mlp.pre"]) * acts[up]
    torch.testing.assert_close(acts["blocks.2.mlp.post"], expected)


def test_queries_keys_and_values_of_gpt2_are_thirds_of_the_fused_projection(
    gpt2: LanguageModel,
) -> None:
    block = gpt2.model.get_submodule("transformer.h.2")
    acts = gpt2.read(IDS, ["hidden.2", "blocks.2.attn.q", "blocks.2.attn.k", "blocks.2.attn.v"])
    given = block.ln_1(acts["hidden.2"])
    weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
    for index, name in enumerate("qkv"):
        columns = slice(24 * index, 24 * (index + 1))
        expected = given @ weight[:, columns] + bias[columns]
        torch.testing.assert_close(acts[f"blocks.2.attn.{name}"], expected)


def test_queries_keys_and_values_of_gpt_neox_are_interleaved_by_head(
    models: dict[str, LanguageModel],
) -> None:
    model = models["gpt_neox"]
    layer = model.model.get_submodule("gpt_neox.layers.2")
    acts = model.read(IDS, ["hidden.2", "blocks.2.attn.q", "blocks.2.attn.k", "blocks.2.attn.v"])
    given = layer.input_layernorm(acts["hidden.2"])
    weight, bias = layer.attention.query_key_value.weight, layer.attention.query_key_value.bias
    heads, size = 3, 8
    for index, name in enumerate("qkv"):
        by_head = []
        for head in range(heads):
            start = (3 * head + index) * size
            rows = slice(start, start + size)
            by_head.append(given @ weight[rows].T + bias[rows])
        torch.testing.assert_close(acts[f"blocks.2.attn.{name}"], torch.cat(by_head, dim=-1))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "mistral", "qwen2"])
def test_queries_keys_and_values_are_what_attention_is_given(
    family: str, models: dict[str, LanguageModel]
) -> None:
    given: list[tuple[Tensor, Tensor, Tensor]] = []

    def spy(module: object, query: Tensor, key: Tensor, value: Tensor, *args: object, **kw: object):
        given.append((query, key, value))
        return sdpa_attention_forward(module, query, key, value, *args, **kw)

    model = models[family]
    AttentionInterface.register("spy", spy)
    before = model.model.config._attn_implementation
    model.model.set_attn_implementation("spy")
    try:
        with torch.no_grad():
            model.model(IDS)
    finally:
        model.model.set_attn_implementation(before)

    query, key, value = (x.transpose(1, 2).flatten(2) for x in given[1])
    acts = model.read(IDS, ["blocks.1.attn.q", "blocks.1.attn.k", "blocks.1.attn.v"])
    torch.testing.assert_close(acts["blocks.1.attn.v"], value)
    # At position 0 the rotary embedding turns nothing, so that it shows the heads as they are.
    torch.testing.assert_close(acts["blocks.1.attn.q"][:, 0], query[:, 0])
    torch.testing.assert_close(acts["blocks.1.attn.k"][:, 0], key[:, 0])
    if family == "gpt2":
        torch.testing.assert_close(acts["blocks.1.attn.q"], query)
    else:
        assert not torch.allclose(acts["blocks.1.attn.q"], query)


def test_widths_are_those_of_what_is_read(any_model: LanguageModel) -> None:
    acts = any_model.read(IDS, list(any_model.sites))
    assert {site: acts[site].shape[-1] for site in acts} == any_model.sites
    for layer in range(3):
        assert any_model.width(f"blocks.{layer}.mlp.pre") == 40
        assert any_model.width(f"blocks.{layer}.resid") == 24


def test_keys_of_grouped_heads_are_narrower(models: dict[str, LanguageModel]) -> None:
    llama = models["llama"]
    assert [llama.width(f"blocks.0.attn.{name}") for name in "qkv"] == [24, 12, 12]


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 5))
def test_a_part_is_what_a_loop_over_heads_finds(
    groups: int, size: int, index: int, tokens: int
) -> None:
    fused = torch.randn(2, tokens, groups * 3 * size)
    columns = [
        group * 3 * size + index * size + within
        for group in range(groups)
        for within in range(size)
    ]
    part = Tap("module", part=index, groups=groups)
    assert torch.equal(part.take(fused), fused[..., columns])

    new = torch.randn(2, tokens, groups * size)
    before = fused.clone()
    expected = fused.clone()
    expected[..., columns] = new
    assert torch.equal(part.put(fused, new), expected)
    assert torch.equal(fused, before)


def test_a_part_that_lies_side_by_side_is_taken_without_a_copy() -> None:
    fused = torch.randn(2, 5, 12)
    taken = Tap("module", part=1).take(fused)
    assert taken.data_ptr() == fused[..., 4:].data_ptr()


def test_the_tensor_of_an_output_is_the_first_of_a_tuple_or_mapping() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    assert output_tensor(one) is one
    assert output_tensor((one, two)) is one
    assert output_tensor({"first": one, "second": two}) is one
    assert output_tensor((None, one)) is None
    assert output_tensor(()) is None
    assert with_output_tensor(one, two) is two
    assert with_output_tensor((one, None), two) == (two, None)
    assert with_output_tensor({"first": one, "second": 3}, two) == {"first": two, "second": 3}


def test_one_vector_per_token_is_seen_in_every_layout() -> None:
    values = torch.randn(2, 3, 4)
    for layout in (values, values.flatten(0, 1)):
        seen = by_token(layout, 2, 3)
        assert seen is not None
        assert torch.equal(seen, values)
    shared = by_token(values[:1], 2, 3)
    assert shared is not None
    assert torch.equal(shared, values[:1].expand(2, 3, 4))
    for shape in [(2, 3), (3, 3, 4), (2, 4, 3, 4), (5, 4), (2, 1, 4)]:
        assert by_token(torch.zeros(shape), 2, 3) is None


class Chain(nn.Module):
    """first -> second (given its input by name) -> third (returns a tuple)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = Step(2.0), Step(3.0), Step(5.0)
        self.calls: list[str] = []
        for name, step in self.named_children():
            step.register_forward_pre_hook(lambda *_, name=name: self.calls.append(name))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(flag=True, hidden_states=x)
        pair: Tensor = (lambda y: (y, "rest"))(self.third(x))[0]
        return pair


class Step(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, hidden_states: Tensor, flag: bool = False) -> Tensor:
        return hidden_states * self.factor


@pytest.fixture
def chain() -> Chain:
    return Chain()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_pass_ends_with_the_last_wanted_tensor(chain: Chain) -> None:
    with reading(chain, {"a": Tap("first"), "b": Tap("second", side="input")}) as found:
        chain(torch.ones(1))
        pytest.fail("the forward pass went on")
    # The hook that looks at the second step's input ran behind the one that counts calls.
    assert chain.calls == ["first", "second"]
    assert found["a"].item() == 2.0
    assert found["b"].item() == 2.0


def test_the_pass_does_not_end_before_a_tensor_that_comes_later(chain: Chain) -> None:
    with reading(chain, {"b": Tap("third"), "a": Tap("first")}) as found:
        chain(torch.ones(1))
    assert chain.calls == ["first", "second", "third"]
    assert found["b"].item() == 30.0


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_tensor_is_replaced_on_either_side(chain: Chain, side: str) -> None:
    with replacing(chain, Tap("second", side=side), lambda x: x + 1):  # type: ignore[arg-type]
        replaced = chain(torch.ones(1)).item()
    assert replaced == {"input": (2 + 1) * 15, "output": (6 + 1) * 5}[side]
    assert chain(torch.ones(1)).item() == 30


def test_the_result_takes_the_dtype_of_the_site(chain: Chain) -> None:
    with replacing(chain, Tap("first"), lambda x: x.double()):
        assert chain(torch.ones(1)).dtype == torch.float32


@pytest.mark.parametrize(
    "replacement", [lambda x: None, lambda x: x[..., :1], lambda x: torch.zeros(5)]
)
def test_a_result_of_another_shape_is_refused(
    chain: Chain, replacement: Callable[[Tensor], Tensor]
) -> None:
    before = hooks(chain)
    with (
        pytest.raises(InputError, match=r"at first returned .* \(3, 2\)"),
        replacing(chain, Tap("first"), replacement),
    ):
        chain(torch.ones(3, 2))
    assert hooks(chain) == before


def test_hooks_come_off_after_an_error(chain: Chain) -> None:
    before = hooks(chain)

    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("boom")

    with (
        pytest.raises(RuntimeError, match="boom"),
        reading(chain, {"a": Tap("third")}),
        replacing(chain, Tap("second"), fail),
    ):
        chain(torch.ones(1))
    with pytest.raises(AttributeError), reading(chain, {"a": Tap("first"), "b": Tap("nowhere")}):
        pass
    assert hooks(chain) == before
