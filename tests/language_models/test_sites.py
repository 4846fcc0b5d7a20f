from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, GPT2Config, OPTConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from palinka.errors import InputError
from palinka.language_models import LanguageModel
from palinka.language_models.sites import Sites, Tap, by_token, find_sites, reading, replacing

IDS = torch.tensor([[5, 77, 901, 4000, 12, 3], [8, 1, 2, 600, 700, 800]])


@pytest.fixture(scope="module")
def sites() -> Sites:
    # At this size the weights of each layer alone would take 3 GB.
    return find_sites(GPT2Config(n_embd=8192, n_head=64, n_layer=5))


def test_sites_of_a_large_model_are_known_without_its_weights(sites: Sites) -> None:
    assert sites.resolve("blocks.middle.mlp.pre") == "blocks.2.mlp.pre"
    assert "widths" not in vars(sites)  # measured once they are needed
    assert sites.width("hidden.5") == 8192
    assert sites.width("blocks.4.mlp.post") == 4 * 8192
    assert sites.width("transformer.h.0.attn.c_attn") == 3 * 8192
    assert sites.width("lm_head") == 50257
    assert len(sites.taps) == 5 * 8 + 6
    for name in ("blocks.4.attn.q", "transformer.h.3.mlp.c_fc"):
        assert sites.resolve(name) == name


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("blocks.2.mlp.prre", r"did you mean 'blocks\.2\.mlp\.pre'"),
        ("blocks.mid.mlp.pre", r"did you mean 'blocks\.middle\.mlp\.pre'"),
        ("hidden.6", "in this model of 5 blocks"),
        ("transformer.h", "no site"),  # a list of modules gives nothing
        ("transformer.h.7.mlp.c_fc", "no site"),
    ],
)
def test_an_unknown_site_is_rejected(sites: Sites, site: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        sites.width(site)
    assert str(error.value).startswith(f"no site {site!r}")
    assert "hidden.{0..5}, blocks.{0..4}.attn.q" in str(error.value)
    assert "blocks.{0..4}.mlp.pre" in str(error.value)


def test_other_families_have_their_module_paths() -> None:
    config = OPTConfig(hidden_size=24, ffn_dim=32, num_hidden_layers=2)
    before, described = torch.get_rng_state(), config.to_dict()
    sites = find_sites(config)
    assert sites.taps == {}
    assert sites.width("model.decoder.layers.1.fc1") == 32
    with pytest.raises(InputError, match=r"it has .*model.decoder.layers.\{0..1\}.fc1"):
        sites.resolve("blocks.0.mlp.pre")
    assert torch.equal(torch.get_rng_state(), before)
    assert config.to_dict() == described


# Block 1, and in it the first and second projection of the MLP, and that of the attention's output.
BY_HAND = {
    "gpt2": ("transformer.h.1", "mlp.c_fc", "mlp.c_proj", "attn.c_proj"),
    "gpt_neo": ("transformer.h.1", "mlp.c_fc", "mlp.c_proj", "attn.attention.out_proj"),
    "gpt_neox": ("gpt_neox.layers.1", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "attention.dense"),
    "llama": ("model.layers.1", "mlp.gate_proj", "mlp.down_proj", "self_attn.o_proj"),
}


@torch.no_grad()
@pytest.mark.parametrize("family", sorted(BY_HAND))
def test_sites_are_as_read_by_hand(family: str, models: dict[str, LanguageModel]) -> None:
    block, first, second, attention = BY_HAND[family]
    modules = {"mlp.pre": first, "mlp.post": second, "mlp.out": second, "attn.out": attention}
    if family == "gpt_neo":
        modules |= {f"attn.{name}": f"attn.attention.{name}_proj" for name in "qkv"}
    model = models[family]
    acts = model.read(IDS, [f"blocks.1.{site}" for site in ("resid", *modules)])
    for site, path in {"resid": "", **modules}.items():
        seen = []
        module = model.model.get_submodule(f"{block}.{path}".rstrip("."))
        hook = module.register_forward_hook(lambda *args, seen=seen: seen.append(args))
        model.model(IDS)
        hook.remove()
        (_, inputs, output), *_ = seen
        expected = inputs if site == "mlp.post" else output
        expected = expected[0] if isinstance(expected, tuple) else expected
        assert torch.equal(acts[f"blocks.1.{site}"], expected), site


@torch.no_grad()
def test_hidden_sites_are_the_hidden_states_of_transformers(any_model: LanguageModel) -> None:
    expected = any_model.model(IDS, output_hidden_states=True).hidden_states
    sites = [site for site in any_model.sites if site.startswith("hidden.")]
    acts = any_model.read(IDS, sites)
    assert sites == [f"hidden.{index}" for index in range(len(expected))]
    assert torch.equal(any_model.logits(IDS), any_model.model(IDS).logits)
    for site, states in zip(sites, expected, strict=True):
        assert torch.equal(acts[site], states), site
        assert torch.equal(any_model.read(IDS, [site])[site], states), site


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "mistral", "qwen2"])
def test_attention_is_given_qkv(family: str, models: dict[str, LanguageModel]) -> None:
    given = []

    def spy(module: object, *args: Any, **options: object) -> object:
        given.append(args[:3])
        return sdpa_attention_forward(module, *args, **options)

    model = models[family]
    AttentionInterface.register("spy", spy)
    before = model.model.config._attn_implementation
    model.model.set_attn_implementation("spy")
    model.model(IDS)
    model.model.set_attn_implementation(before)

    query, key, value = (x.transpose(1, 2).flatten(2) for x in given[1])
    acts = model.read(IDS, ["blocks.1.attn.q", "blocks.1.attn.k", "blocks.1.attn.v"])
    torch.testing.assert_close(acts["blocks.1.attn.v"], value)
    # At position 0 the rotary embedding turns nothing, so that it shows the heads as they are.
    torch.testing.assert_close(acts["blocks.1.attn.q"][:, 0], query[:, 0])
    torch.testing.assert_close(acts["blocks.1.attn.k"][:, 0], key[:, 0])
    assert torch.allclose(acts["blocks.1.attn.q"], query) == (family == "gpt2")


def test_widths_are_those_of_what_is_read(any_model: LanguageModel) -> None:
    acts = any_model.read(IDS, list(any_model.sites))
    assert {site: acts[site].shape[-1] for site in acts} == any_model.sites
    assert any_model.width("blocks.2.mlp.pre") == 40
    # Grouped heads share keys and values.
    grouped = any_model.model.config.model_type in ("llama", "mistral", "qwen2")
    assert any_model.width("blocks.2.attn.k") == (12 if grouped else 24)


def test_one_vector_per_token_is_seen_in_every_layout() -> None:
    values = torch.randn(2, 3, 4)
    for layout in (values, values.flatten(0, 1), values[:1]):
        seen = by_token(layout, 2, 3)
        assert seen is not None
        assert torch.equal(seen, layout.reshape(-1, 3, 4).expand(2, 3, 4))
    for shape in [(2, 3), (3, 3, 4), (2, 4, 3, 4), (5, 4), (2, 1, 4)]:
        assert by_token(torch.zeros(shape), 2, 3) is None


class Step(nn.Module):
    def __init__(self, factor: float, calls: list[float]) -> None:
        super().__init__()
        self.factor, self.calls = factor, calls

    def forward(self, hidden_states: Tensor, flag: bool = False) -> Tensor:
        self.calls.append(self.factor)
        return hidden_states * self.factor


class Chain(nn.Module):
    """Times 2, then times 3 (given its input by name), then times 5; counts the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[float] = []
        self.first, self.second, self.third = (Step(factor, self.calls) for factor in (2, 3, 5))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.third(self.second(flag=True, hidden_states=self.first(x)))
        return result


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(
    ("taps", "calls"),
    [
        ({"a": Tap("first"), "b": Tap("second", side="input")}, [2]),
        ({"b": Tap("second"), "a": Tap("first")}, [2, 3]),
    ],
)
def test_the_pass_ends_early(taps: dict[str, Tap], calls: list[float]) -> None:
    chain = Chain()
    with reading(chain, taps) as found:
        chain(torch.ones(1))
        pytest.fail("the forward pass continued")
    assert chain.calls == calls
    assert found["a"].item() == 2
    assert found["b"].item() == (2 if len(calls) == 1 else 6)
    assert hooks(chain) == 0


@pytest.mark.parametrize(("side", "expected"), [("input", (2 + 1) * 15), ("output", (6 + 1) * 5)])
def test_a_tensor_is_replaced_on_either_side(side: str, expected: float) -> None:
    chain = Chain()
    # The result takes the dtype of the site.
    with replacing(chain, Tap("second", side=side), lambda x: x.double() + 1):  # type: ignore[arg-type]
        replaced = chain(torch.ones(1))
    assert replaced.dtype == torch.float32
    assert replaced.item() == expected
    assert chain(torch.ones(1)).item() == 30


def fail(_: Tensor) -> Tensor:
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("replacement", "error", "message"),
    [
        (lambda x: None, InputError, r"at second returned NoneType.* \(3, 2\)"),
        (lambda x: x[..., :1], InputError, r"at second returned \(3, 1\).* \(3, 2\)"),
        (lambda x: torch.zeros(5), InputError, r"at second returned \(5,\).* \(3, 2\)"),
        (fail, RuntimeError, "boom"),
    ],
)
def test_hooks_are_removed_after_an_error(
    replacement: Callable[[Tensor], Tensor], error: type[Exception], message: str
) -> None:
    chain = Chain()
    with (
        pytest.raises(error, match=message),
        reading(chain, {"a": Tap("third")}),
        replacing(chain, Tap("second"), replacement),
    ):
        chain(torch.ones(3, 2))
    with pytest.raises(AttributeError), reading(chain, {"a": Tap("first"), "b": Tap("nowhere")}):
        pass
    assert hooks(chain) == 0
