"""Activation patching of TransformerLens, a forward pass for each cell, and attribution."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from palinka.interventions.pairs import Pairs
from palinka.language_models import LanguageModel
from peers.absent import peer_module


def patching(lm: LanguageModel, pairs: Pairs, name: str) -> Callable[[], Tensor]:
    """A call of `get_act_patch_<name>`, which returns logit differences, `(cells…, prompts)`.

    Args:
        lm: The model, of which TransformerLens gets a copy.
        pairs: Prompts of one length, with one answer and one wrong answer each.
        name: Such as `resid_pre`.
    """
    functions = peer_module("transformer_lens.patching", "transformer-lens>=4.3")
    bridge = _bridge(lm)
    clean, corrupted, answers, wrong = map(
        torch.tensor, (pairs.clean, pairs.corrupted, pairs.answers, pairs.wrong)
    )

    def metric(logits: Tensor) -> Tensor:
        last = logits[:, -1]
        return (last.gather(1, answers) - last.gather(1, wrong))[:, 0]

    @torch.no_grad()
    def run() -> Tensor:
        _, cache = bridge.run_with_cache(clean)
        patch = getattr(functions, f"get_act_patch_{name}")
        return patch(bridge, corrupted, cache, metric, reduce="none", baseline=True).values

    return run


def attributions(lm: LanguageModel, pairs: Pairs) -> Callable[[], Any]:
    """A call of `attribution_patch`, which returns scores of nodes, means over the prompts.

    All prompts have the answer and the wrong answer of the first.
    """
    tools = peer_module("transformer_lens.tools.analysis", "transformer-lens>=4.3")
    bridge, (right,), (wrong,) = _bridge(lm), pairs.answers[0], pairs.wrong[0]
    bridge.requires_grad_(True)  # it differentiates what the embeddings return
    clean, corrupted = torch.tensor(pairs.clean), torch.tensor(pairs.corrupted)

    def metric(logits: Tensor) -> Tensor:
        return (logits[..., -1, right] - logits[..., -1, wrong]).sum()

    return lambda: tools.attribution_patch(bridge, clean, corrupted, metric).node_scores


def _bridge(lm: LanguageModel) -> Any:
    bridges = peer_module("transformer_lens.model_bridge", "transformer-lens>=4.3")
    return bridges.TransformerBridge.boot_transformers(
        lm.spec.name, hf_model=copy.deepcopy(lm.model), tokenizer=lm.tokenizer, device="cpu"
    ).eval()
