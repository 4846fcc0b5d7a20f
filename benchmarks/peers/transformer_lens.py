"""Activation patching of TransformerLens, one forward pass for each cell."""

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
    bridges = peer_module("transformer_lens.model_bridge", "transformer-lens>=4.3")
    functions = peer_module("transformer_lens.patching", "transformer-lens>=4.3")
    bridge: Any = bridges.TransformerBridge.boot_transformers(
        lm.spec.name, hf_model=copy.deepcopy(lm.model), tokenizer=lm.tokenizer, device="cpu"
    )
    bridge.eval()
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
