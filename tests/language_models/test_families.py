"""Every named site against hidden states of transformers, hooks placed by hand, and weights."""

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from palinka.language_models import LanguageModel

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
