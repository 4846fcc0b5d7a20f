import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig

from palinka.errors import InputError
from palinka.language_models import LanguageModel
from palinka.language_models.attention import _acts, attending, attention_module
from palinka.language_models.model import Tokens
from palinka.language_models.sites import find_sites, reading


def eager(model: Any, tokens: Tokens) -> tuple[Tensor, ...]:
    """Patterns by transformers' own eager attention, 0 for queries in padding."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    given = {"input_ids": tokens.ids, "attention_mask": tokens.mask}
    with torch.no_grad():
        found: Any = model(**given, output_attentions=True, use_cache=False).attentions
    return tuple(pattern * tokens.mask[:, None, :, None] for pattern in found)


def test_patterns_are_those_of_eager_attention(any_model: LanguageModel, texts: list[str]) -> None:
    tokens = any_model.tokenize(texts)
    found, in_batches = any_model.attention(texts), any_model.attention(texts, batch_size=3)
    assert list(found) == [0, 1, 2]
    for layer, expected in enumerate(eager(any_model.model, tokens)):
        assert torch.equal(found[layer], expected)
        torch.testing.assert_close(in_batches[layer], expected, rtol=0, atol=1e-5)
    one = any_model.attention(texts, layers=1)
    assert list(one) == [1]
    assert torch.equal(one[1], found[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpt2_computes_scores_in_float32_where_its_configuration_says_so(
    dtype: torch.dtype,
) -> None:
    # Where the wrong order of products would overflow bfloat16's 8 bits of precision.
    torch.manual_seed(0)
    sizes = {"n_embd": 24, "n_layer": 3, "n_head": 4, "scale_attn_by_inverse_layer_idx": True}
    config = GPT2Config(reorder_and_upcast_attn=True, initializer_range=1.0, **sizes)
    build: Any = AutoModelForCausalLM.from_config
    model = build(config).to(dtype).eval()
    tokens = Tokens.of([list(range(20)), list(range(40, 50))])
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[Tensor], None]:
        return lambda pattern: found.update({layer: pattern})

    modules = [block.attn for block in model.transformer.h]
    taps: Any = [(module, "pattern", keep(layer)) for layer, module in enumerate(modules)]
    with attending(model, taps), torch.no_grad():
        model(tokens.ids, attention_mask=tokens.mask, use_cache=False)
    for layer, expected in enumerate(eager(model, tokens)):
        pattern = found[layer].to(dtype) * tokens.mask[:, None, :, None]
        torch.testing.assert_close(pattern, expected, rtol=0, atol=1e-5)


def test_scores_are_what_the_softmax_is_given(any_model: LanguageModel, texts: list[str]) -> None:
    tokens = any_model.tokenize(texts)
    patterns, scores = any_model.attention(texts), any_model.attention(texts, what="scores")
    real = tokens.mask[:, None, :, None].bool()
    for layer, pattern in patterns.items():
        left_out = scores[layer] == -torch.inf
        assert torch.equal(left_out & real, (pattern == 0) & real)
        expected = scores[layer].softmax(-1).masked_fill(~real, 0)
        torch.testing.assert_close(pattern, expected, rtol=0, atol=1e-6)
        assert not scores[layer].masked_select(~real).any()


@pytest.mark.parametrize(("family", "scale"), [("gpt2", 6**-0.5), ("gpt_neo", 1.0)])
def test_scores_are_products_of_queries_and_keys(
    family: str, scale: float, models: dict[str, LanguageModel]
) -> None:
    lm = models[family]
    texts = "He gave her the letter and said nothing."
    read = lm.read(texts, ["blocks.1.attn.q", "blocks.1.attn.k"])
    q, k = (read[f"blocks.1.attn.{name}"].unflatten(-1, (4, 6)).transpose(1, 2) for name in "qk")
    scores = lm.attention(texts, layers=[1], what="scores")[1]
    seen = scores > -torch.inf
    torch.testing.assert_close(scores[seen], (scale * q @ k.mT)[seen], rtol=1e-5, atol=1e-4)
    causal = torch.ones(scores.shape[-2:]).tril()
    # The second block of this GPT-Neo sees four tokens.
    expected = causal - causal.tril(-4) if family == "gpt_neo" else causal
    assert torch.equal(seen, expected.bool().expand_as(seen))


@pytest.fixture
def precise(any_model: LanguageModel) -> LanguageModel:
    return LanguageModel.from_pretrained(any_model.spec.name, device="cpu", dtype="float64")


def values_and_z(lm: LanguageModel, texts: list[str], layer: int) -> tuple[Tensor, Tensor]:
    """What heads read, repeated for those that share it, and what they write, each per head."""
    tokens = lm.tokenize(texts)
    taps = lm.spec.sites.taps
    output = taps[f"blocks.{layer}.attn.z"]
    wanted = {"v": taps[f"blocks.{layer}.attn.v"], "z": output}
    # Gemma 2's own attention is float32 in a float64 model, and NaN for padding beyond a window.
    float32 = lm.model.config.model_type == "gemma2"
    here = attending(lm.model) if float32 else nullcontext()
    with here, reading(lm.model, wanted) as found, torch.no_grad():
        lm.model(tokens.ids, attention_mask=tokens.mask, use_cache=False)
    heads = lm.attention(texts, layers=layer)[layer].shape[1]
    size = found["z"].shape[-1] // heads
    v, z = (found[name].unflatten(-1, (-1, size)).transpose(1, 2) for name in "vz")
    real = tokens.mask[:, None, :, None]
    return v.repeat_interleave(heads // v.shape[1], dim=1), z * real


def test_closed_forms(precise: LanguageModel, texts: list[str]) -> None:
    tokens = precise.tokenize(texts)
    for layer, pattern in precise.attention(texts).items():
        ones = tokens.mask[:, None].expand(pattern.shape[:3]).double()
        torch.testing.assert_close(pattern.sum(-1), ones, rtol=0, atol=1e-10)
        assert not pattern.triu(1).any()
        v, z = values_and_z(precise, texts, layer)
        torch.testing.assert_close(pattern @ v, z, rtol=1e-10, atol=1e-10)


def test_a_pattern_is_replaced(any_model: LanguageModel, texts: list[str]) -> None:
    tokens = any_model.tokenize(texts)
    with attending(any_model.model):
        expected = any_model.logits(texts)
    with any_model.replaced("blocks.1.attn.pattern", lambda pattern: pattern):
        assert torch.equal(any_model.logits(texts), expected)

    def to_itself(pattern: Tensor) -> Tensor:
        return torch.eye(pattern.shape[-1]).expand_as(pattern)

    def first_head_off(pattern: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(pattern[:, :1]), pattern[:, 1:]], dim=1)

    with any_model.replaced("blocks.middle.attn.pattern", to_itself):
        v, z = values_and_z(any_model, texts, 1)
        assert torch.equal(z, v * tokens.mask[:, None, :, None])
        with any_model.replaced("blocks.1.attn.pattern", first_head_off):
            # What is read is the replacement, and the inner one is given what the outer returned.
            pattern = any_model.attention(texts, layers=[1])[1]
            assert torch.equal(pattern[:, 0], torch.zeros_like(pattern[:, 0]))
            heads = pattern.shape[1]
            one = torch.eye(pattern.shape[-1]) * tokens.mask[:, :, None]
            assert torch.equal(pattern[:, 1:], one[:, None].expand(-1, heads - 1, -1, -1))


def test_scores_are_replaced(any_model: LanguageModel, texts: list[str]) -> None:
    tokens = any_model.tokenize(texts)
    before = any_model.attention(texts, layers=[1])[1]

    def without_itself(scores: Tensor) -> Tensor:
        itself = torch.eye(scores.shape[-1], dtype=torch.bool)
        itself[0, 0] = False
        return scores.masked_fill(itself, -torch.inf)

    with any_model.replaced("blocks.1.attn.scores", without_itself):
        after = any_model.attention(texts, layers=[1])[1]
    expected = before.clone()
    expected.diagonal(dim1=-2, dim2=-1)[..., 1:] = 0
    expected = expected / expected.sum(-1, keepdim=True)
    real = tokens.mask[:, None, :, None] == 1
    expected = torch.where(real, expected, torch.zeros(()))
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-4)


def test_a_replaced_pattern_acts_in_every_step_of_generation(any_model: LanguageModel) -> None:
    texts = ["I saw him at the", "The river"]
    options = {"max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5}

    def first_token_only(pattern: Tensor) -> Tensor:
        changed = torch.zeros_like(pattern)
        changed[..., 0] = 1.0
        return changed

    with attending(any_model.model):
        plain = any_model.generate(texts, **options)
    with any_model.replaced("blocks.1.attn.pattern", lambda pattern: pattern):
        assert torch.equal(any_model.generate(texts, **options), plain)
    with any_model.replaced("blocks.1.attn.pattern", first_token_only):
        cached = any_model.generate(texts[:1], **options)
        assert torch.equal(cached, any_model.generate(texts[:1], use_cache=False, **options))


def test_the_model_is_left_as_it_was(any_model: LanguageModel, texts: list[str]) -> None:
    model = any_model.model
    modules = [attention_module(model, any_model.spec.sites, layer) for layer in range(3)]
    before = model.config._attn_implementation
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = any_model.logits(texts)

    def fail(values: Tensor) -> Tensor:
        raise RuntimeError("stop")

    for what in ("pattern", "scores"):
        with (
            any_model.replaced("blocks.0.attn.pattern", lambda pattern: 2 * pattern),
            pytest.raises(RuntimeError, match="stop"),
            any_model.replaced(f"blocks.1.attn.{what}", fail),
        ):
            any_model.logits(texts)
    any_model.attention(texts)
    assert model.config._attn_implementation == before
    assert not any(_acts.get(module) or "_attn" in vars(module) for module in modules)
    assert torch.equal(any_model.logits(texts), logits)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_gradients_reach_a_replaced_pattern(gpt2: LanguageModel) -> None:
    kept: list[Tensor] = []

    def follow(pattern: Tensor) -> Tensor:
        kept.append(pattern.requires_grad_())
        return kept[-1]

    ids = gpt2.tokenize("He gave her the letter.").ids
    with gpt2.replaced("blocks.1.attn.pattern", follow):
        gpt2.model(ids).logits[0, -1, 7].backward()
    assert kept[0].grad is not None
    assert kept[0].grad.abs().sum() > 0


def test_mistakes_are_named(gpt2: LanguageModel) -> None:
    message = r"not one vector per token; use lm\.attention\(texts, layers=2, what='pattern'\)$"
    with pytest.raises(InputError, match=message):
        gpt2.read("Yes", "blocks.2.attn.pattern")
    with pytest.raises(InputError, match=r"^block 3; the model has blocks 0 to 2$"):
        gpt2.attention("Yes", layers=[1, 3])
    with pytest.raises(InputError, match=r"^what is 'weights'; expected pattern or scores$"):
        gpt2.attention("Yes", what="weights")  # type: ignore[arg-type]
    with (
        pytest.raises(InputError, match=r"the replacement at blocks\.0\.attn\.scores returned"),
        gpt2.replaced("blocks.0.attn.scores", lambda scores: scores[0]),
    ):
        gpt2.logits("Yes")
    opt = OPTConfig(hidden_size=24, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2)
    build: Any = AutoModelForCausalLM.from_config
    with pytest.raises(InputError, match="attention patterns of opt cannot be read or replaced"):
        attention_module(build(opt), find_sites(opt), 0)
    gpt2.model.config._attn_implementation_internal = "flash_attention_2"
    try:
        with pytest.raises(InputError, match=r"^attention 'flash_attention_2' gives no patterns; "):
            gpt2.attention("Yes")
    finally:
        gpt2.model.config._attn_implementation_internal = "sdpa"


def test_transformer_lens_has_the_same_patterns_and_scores() -> None:
    pytest.importorskip("transformer_lens")
    from transformer_lens.model_bridge import TransformerBridge

    lm = LanguageModel.from_pretrained("mini", device="cpu")
    model: Any = copy.deepcopy(lm.model)  # it changes what it is given
    ids = lm.tokenize("He gave her the letter and said nothing more.").ids
    options = {"hf_model": model, "tokenizer": lm.tokenizer}
    bridge: Any = TransformerBridge.boot_transformers(lm.spec.name, device="cpu", **options)
    cache = bridge.run_with_cache(ids)[1]
    patterns, scores = lm.attention(ids), lm.attention(ids, what="scores")
    for layer, pattern in patterns.items():
        expected = cache[f"blocks.{layer}.attn.hook_pattern"]
        torch.testing.assert_close(pattern, expected, rtol=0, atol=1e-5)
        expected = cache[f"blocks.{layer}.attn.hook_attn_scores"]
        seen = scores[layer] > -torch.inf
        torch.testing.assert_close(scores[layer][seen], expected[seen], rtol=1e-5, atol=1e-5)
        # There the mask's number is added, not infinity.
        assert (expected[~seen] < -1e30).all()
