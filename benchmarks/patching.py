"""Activation patching at every layer, position and head.

python benchmarks/patching.py
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import Case, Rival, report
from language_model import save_random_gpt2
from palinka.interventions.attribution import attribute
from palinka.interventions.engine import run
from palinka.interventions.pairs import Pairs
from palinka.interventions.plan import Cell, Intervention, Patch
from palinka.language_models import LanguageModel
from peers.absent import Absent
from peers.transformer_lens import attributions, patching

TOKENS = 16


def random_pairs(prompts: int) -> Pairs:
    """Prompts of random tokens that differ in the second one, so that most cells have effects."""
    random = np.random.default_rng(0)
    clean = random.integers(1, 8192, (prompts, TOKENS))
    corrupted = clean.copy()
    corrupted[:, 1] = random.integers(1, 8192, prompts)
    right, wrong = random.integers(1, 8192, (2, prompts, 1)).tolist()
    return Pairs(clean.tolist(), corrupted.tolist(), right, wrong, ["random"] * prompts)


def layer_by_position(lm: LanguageModel) -> list[Cell]:
    """The residual stream before each block, at each position."""
    layers, tokens = range(lm.spec.sites.layers), range(TOKENS)
    return [(Intervention(f"hidden.{i}", Patch(), t),) for i in layers for t in tokens]


def heads(lm: LanguageModel) -> list[Cell]:
    """Outputs of each head, at all positions."""
    sites = lm.spec.sites
    names = [
        f"blocks.{i}.attn.z.{h}" for i in range(sites.layers) for h in range(sites.heads.count)
    ]
    return [(Intervention(name, Patch()),) for name in names]


MAPS = {
    "layer by position": (layer_by_position, "resid_pre"),
    "heads": (heads, "attn_head_out_all_pos"),
}


def agree(theirs: Any, ours: np.ndarray) -> str:
    """The largest difference of two maps of logit differences."""
    gap = float(np.abs(theirs.numpy().reshape(ours.shape) - ours).max())
    assert gap < 1e-3, gap
    return f"logit differences within {gap:.0e}"


def case(
    lm: LanguageModel, model: str, kind: str, prompts: int, promise: float, rounds: int
) -> Case:
    """One map of some prompts."""
    make, name = MAPS[kind]
    plan, pairs = make(lm), random_pairs(prompts)

    def ours() -> np.ndarray:
        return run(lm, pairs, plan).values["logit_difference"]

    title = f"{model}, {kind} ({len(plan)} cells), {prompts} prompt{'s' * (prompts > 1)}"
    try:
        other = patching(lm, pairs, name)
    except Absent as reason:
        return Case(title, ours, [], {"TransformerLens 4.3": str(reason)}, rounds)
    rival = Rival("TransformerLens 4.3", other, at_least=promise, check=agree, warm_up=rounds > 2)
    # What a single call of milliseconds finds in the processor's caches is the other side's.
    return Case(title, ours, [rival], rounds=rounds, repeats=5 if prompts == 1 else 1)


def attribution_case(lm: LanguageModel, model: str, prompts: int) -> Case:
    """Estimates of all components from one backward pass, against one run for each cell."""
    pairs = random_pairs(prompts)
    pairs = replace(pairs, answers=pairs.answers[:1] * prompts, wrong=pairs.wrong[:1] * prompts)
    layers, heads = range(lm.spec.sites.layers), range(lm.spec.sites.heads.count)
    parts = ["attn.write", "mlp.write", *(f"attn.z.{head}" for head in heads)]
    sites = ["embed", *(f"blocks.{i}.{part}" for i in layers for part in parts)]
    plan = [(Intervention(site, Patch(), t),) for site in sites for t in range(TOKENS)]

    def ours() -> np.ndarray:
        return attribute(lm, pairs, plan).values["logit_difference"]

    def near(theirs: np.ndarray, estimates: np.ndarray) -> str:
        return f"r = {np.corrcoef(theirs.ravel(), estimates.ravel())[0, 1]:.3f}"

    def same(theirs: Any, estimates: np.ndarray) -> str:
        base = run(lm, pairs, []).corrupted["logit_difference"]
        effects = dict(zip(((c[0].site, c[0].positions) for c in plan), estimates, strict=True))
        named = {
            "embed": "embed", "mlp_out": "blocks.{0.layer}.mlp.write",
            "attn_head_out": "blocks.{0.layer}.attn.z.{0.head}",
        }  # fmt: skip
        gap = max(
            abs((effects[named[node.kind].format(node), node.position] - base).mean() - score)
            for node, score in theirs.items()
        )
        assert gap < 1e-3, gap
        return f"estimates within {gap:.0e}"

    exact = Rival(
        "one run for each cell", lambda: run(lm, pairs, plan).values["logit_difference"],
        at_least=20, check=near,
    )  # fmt: skip
    title = f"{model}, attribution of all components ({len(plan)} cells), {prompts} prompts"
    try:
        other = attributions(lm, pairs)
    except Absent as reason:
        return Case(title, ours, [exact], {"TransformerLens 4.3": str(reason)}, 5)
    rival = Rival("TransformerLens 4.3, embed, heads and MLPs", other, at_least=3, check=same)
    return Case(title, ours, [exact, rival], rounds=5)


def main() -> None:
    """Measure and publish."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    save_random_gpt2(folder)
    mini = LanguageModel.from_pretrained("mini", device="cpu")
    small = LanguageModel.from_pretrained(str(folder), device="cpu")
    report(
        "patching",
        "Activation patching",
        [
            case(mini, "mini", "layer by position", 1, 20, 5),
            case(mini, "mini", "layer by position", 8, 8, 5),
            case(mini, "mini", "heads", 1, 15, 5),
            case(mini, "mini", "heads", 8, 4, 5),
            attribution_case(mini, "mini", 8),
            case(small, "GPT-2 small's shape", "layer by position", 4, 4, 2),
            case(small, "GPT-2 small's shape", "heads", 4, 3, 2),
        ],
        "Prompts of 16 random tokens, of which the second differs; one thread. TransformerLens "
        "runs the whole model for each cell, with all prompts as one batch.",
    )


if __name__ == "__main__":
    main()
