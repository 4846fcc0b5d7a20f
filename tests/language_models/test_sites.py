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
    assert len(sites.taps) == 5 * 13 + 7
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
    assert "hidden.{0..5}, blocks.{0..4}.attn.q|k|v|z|out|write" in str(error.value)
    assert "blocks.{0..4}.mlp.in|pre|post|out|write" in str(error.value)


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
    assert list(any_model.sites)[:3] == ["embed", "hidden.0", "blocks.0.attn.q"]
    assert {site: acts[site].shape[-1] for site in acts} == any_model.sites
    assert any_model.width("blocks.2.mlp.pre") == 40
    # Grouped heads share keys and values.
    kind = any_model.model.config.model_type
    width = 16 if kind.startswith(("qwen3", "gemma")) else 24 if kind[:3] in ("gpt", "phi") else 12
    assert any_model.width("blocks.2.attn.k") == (12 if kind == "phi3" else width)


@torch.no_grad()
def test_writes_add_up_to_the_residual_stream(any_model: LanguageModel) -> None:
    acts = any_model.read(IDS, list(any_model.sites))
    for index in range(3):
        block = f"blocks.{index}"
        mid = acts[f"hidden.{index}"] + acts[f"{block}.attn.write"]
        if f"{block}.resid_mid" in acts:
            torch.testing.assert_close(acts[f"{block}.resid_mid"], mid, atol=1e-5, rtol=1e-5)
        after = mid + acts[f"{block}.mlp.write"]
        torch.testing.assert_close(acts[f"{block}.resid"], after, atol=1e-5, rtol=1e-5)
    assert torch.equal(acts["embed"], any_model.model.get_input_embeddings()(IDS))


@torch.no_grad()
def test_heads_are_slices_and_their_results_add_up(any_model: LanguageModel) -> None:
    """Written out from the weights, whichever way round they are stored."""
    heads = any_model.spec.sites.heads
    assert heads is not None
    names = [f"blocks.1.attn.{name}" for name in ("q", "k", "v", "z", "out")]
    whole = any_model.read(IDS, names)
    output = any_model.model.get_submodule(any_model.spec.sites.tap("blocks.1.attn.z").module)
    flat = getattr(output, "nf", None)  # GPT-2 has its weights the other way round
    weight = output.weight if flat else output.weight.T
    total = torch.zeros_like(whole["blocks.1.attn.out"])
    for name in names[:4]:
        count = heads.shared if name[-1] in "kv" else heads.count
        for head in range(count):
            assert any_model.width(f"{name}.{head}") == heads.size
            part = any_model.read(IDS, f"{name}.{head}")[f"{name}.{head}"]
            here = slice(head * heads.size, (head + 1) * heads.size)
            assert torch.equal(part, whole[name][..., here]), name
            if name.endswith("z"):
                site = f"blocks.1.attn.result.{head}"
                result = any_model.read(IDS, site)[site]
                assert result.shape[-1] == any_model.width(site)
                torch.testing.assert_close(result, part @ weight[here])
                total += result
        assert whole[name].shape[-1] == count * heads.size
    bias = output.bias if output.bias is not None else 0.0
    torch.testing.assert_close(total + bias, whole["blocks.1.attn.out"], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("letter", "qkvz")
def test_one_head_is_replaced(letter: str, any_model: LanguageModel) -> None:
    """Other heads keep their values, and zero for z takes away what the head would write."""
    site, whole = f"blocks.1.attn.{letter}.1", f"blocks.1.attn.{letter}"
    size = any_model.width(site)
    sites = [whole, "blocks.1.attn.out", "blocks.1.attn.result.1"]
    clean = any_model.read(IDS, sites)
    with any_model.replaced(site, torch.zeros_like):
        acts = any_model.read(IDS, sites)
        logits = any_model.logits(IDS)
    expected = clean[whole].clone()
    expected[..., size : 2 * size] = 0
    assert torch.equal(acts[whole], expected)
    assert not torch.allclose(logits, any_model.logits(IDS))
    if letter == "z":
        left = clean["blocks.1.attn.out"] - clean["blocks.1.attn.result.1"]
        torch.testing.assert_close(acts["blocks.1.attn.out"], left, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_middle_of_the_residual_stream_is_replaced(any_model: LanguageModel) -> None:
    """As by replacing what the attention adds: both the MLP and what it is added to change."""
    if "blocks.1.resid_mid" not in any_model.sites:
        pytest.skip("attention and MLP run in parallel")
    torch.manual_seed(0)
    new = torch.randn(2, 6, 24)
    given = any_model.read(IDS, "hidden.1")["hidden.1"]
    with any_model.replaced("blocks.1.attn.write", lambda _: new - given):
        expected = any_model.logits(IDS)
    with any_model.replaced("blocks.1.resid_mid", lambda _: new):
        acts = any_model.read(IDS, ["blocks.1.resid_mid", "blocks.1.mlp.write", "blocks.1.resid"])
        torch.testing.assert_close(any_model.logits(IDS), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(acts["blocks.1.resid_mid"], new)
    assert torch.equal(acts["blocks.1.resid"], new + acts["blocks.1.mlp.write"])
    with any_model.replaced("blocks.1.resid_mid", lambda x: x):
        assert torch.equal(any_model.logits(IDS), any_model.model(IDS).logits)


def test_gradients_pass_a_replaced_middle(gpt2: LanguageModel) -> None:
    """Through a function that keeps what it is given for its gradient."""

    def logit(amount: Tensor) -> Tensor:
        with (
            gpt2.replaced("blocks.0.resid", lambda x: x * amount),
            gpt2.replaced("blocks.1.resid_mid", lambda x: x * x),
        ):
            return gpt2.model(IDS).logits[0, -1, 7]

    amount = torch.ones((), requires_grad=True)
    logit(amount).backward()
    with torch.no_grad():
        expected = (logit(amount + 1e-3) - logit(amount - 1e-3)) / 2e-3
    assert amount.grad is not None
    torch.testing.assert_close(amount.grad, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("model", "site", "message"),
    [
        ("gpt2", "blocks.1.attn.z.4", "^head 4 of block 1; the model has heads 0 to 3$"),
        ("gpt2", "blocks.1.attn.k.4", "^head 4 of block 1; the model has heads 0 to 3$"),
        (
            "llama",
            "blocks.2.attn.v.3",
            r"^blocks\.2\.attn\.v\.3: this model has key-value heads 0 and 1; "
            "query head 3 reads number 1$",
        ),
        ("llama", "blocks.2.attn.k.9", "this model has key-value heads 0 and 1$"),
        (
            "gpt_neox",
            "blocks.middle.resid_mid",
            "^site 'blocks.middle.resid_mid' does not exist in gpt_neox, whose attention and MLP "
            "run in parallel$",
        ),
        (
            "gpt2",
            "hidden.4",
            r"blocks.2.resid is the output of the last block, and hidden.3 is after the final norm",
        ),
        ("gpt2", "blocks.3.attn.z.0", r"blocks.\{0..2\}.attn.q\|z\|result.\{0..3\}"),
    ],
)
def test_heads_and_layers_that_a_model_lacks(
    model: str, site: str, message: str, models: dict[str, LanguageModel]
) -> None:
    with pytest.raises(InputError, match=message):
        models[model].read(IDS, site)


def test_the_result_of_a_head_is_only_read(gpt2: LanguageModel) -> None:
    message = r"^blocks.1.attn.result.2 can only be read; replace blocks.1.attn.z.2$"
    with (
        pytest.raises(InputError, match=message),
        gpt2.replaced("blocks.1.attn.result.2", torch.zeros_like),
    ):
        pass


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
