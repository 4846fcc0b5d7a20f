"""Effects of replacing activations by values without information about the prompt."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from palinka.analyses.result import Array, Table, takes
from palinka.analyses.stats.effects import (
    Axes,
    Cells,
    ClustersBy,
    Effects,
    Only,
    Recovery,
    by_component,
    cluster_means,
    measure_effects,
    sign_flip_test,
    solved_prompts,
)


@dataclass(frozen=True)
class Ablation(Effects):
    """Effects of ablation; of each component the first axis of the cells is the value.

    Attributes:
        difference: Effect with the first value minus that with the cell's own, `(cells,)`, such as
            zero minus mean; `None` for one value.
        difference_p: Two-sided p-values of the differences by sign flips of whole clusters.
        difference_p_corrected: The same, corrected for all cells by the maximum.
        direct_effect: Part of the effect that goes straight to the logits, `(cells, prompts)`.
        self_repair: The effect minus the direct effect, `(cells, prompts)`: later components make
            up for an ablation where the two have opposite signs.
    """

    share = "{:.0%} of the gap left"
    difference: Array | None = None
    difference_p: Array | None = None
    difference_p_corrected: Array | None = None
    direct_effect: Array | None = None
    self_repair: Array | None = None

    def tables(self) -> dict[str, Table]:
        """The table `cells`, also with the mean direct effect and the mean self-repair."""
        table = dict(super().tables()["cells"])
        for name in ("direct_effect", "self_repair"):
            if (values := getattr(self, name)) is not None:
                table[name] = cluster_means(values, np.array(self.cluster)).mean(axis=1)
        return {"cells": table}


@takes("effects of ablation")
def ablation(
    patched: Cells,
    clean: ArrayLike,
    corrupted: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    possible: Cells | None = None,
    axes: Axes | None = None,
    outcome: str = "logit_difference",
    direct: Cells | None = None,
    solved: ArrayLike | None = None,
    *,
    level: float = 0.95,
    permutations: int = 1000,
    resamples: int = 1000,
    seed: int = 0,
    clusters_by: ClustersBy = "template",
    only: Only = None,
    recovery: Recovery = "ratio_of_sums",
) -> Ablation:
    """Measure the effect of ablating each cell of clean prompts, by one or several values.

    An effect is the outcome with the ablation minus that of the clean run, and understates what
    the cell does where later components make up for it. What is left of the gap to the corrupted
    prompts is the recovery, 1 where nothing is lost. Tests and intervals are those of
    `activation_patching`; all values are corrected together.

    Args:
        patched: Outcomes of the ablated runs, `(values, layers, heads, prompts)` or cells of other
            axes after the first, or a mapping of components to such arrays.
        clean: Outcomes of the clean runs, `(prompts,)`; 0 for a divergence from them.
        corrupted: Outcomes of the corrupted runs, `(prompts,)`; without, there is no recovery.
        clusters: Template or text of each prompt, `(prompts,)`; default one of its own.
        possible: Mask of the cells that can have an effect, in the shape of the cells.
        axes: By component the names of the axes of its cells and the labels of the entries, such
            as `{"heads": {"value": ["zero", "mean"], "layer": range(12), "head": range(12)}}`.
        outcome: Name of the outcome.
        direct: Direct effects, in the shape of `patched`: the change of the outcome by the
            component's own write, with the scale of the final norm frozen.
        solved: Mask of the prompts with a positive clean and a negative corrupted logit
            difference, `(prompts,)`; default from the outcomes, if they are logit differences.
        level: Coverage of the intervals; corrected p-values up to `1 - level` are significant.
        permutations: Number of sign flips; 0 for no p-values.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of the flips and the resamples.
        clusters_by: `"template"`, or `"prompt"` to take prompts as independent.
        only: `"solved"` leaves out prompts without a positive clean and a negative corrupted
            logit difference; `"all"` also analyzes prompts fewer than half of which are solved.
        recovery: `"ratio_of_sums"`, or `"mean_of_ratios"` of single prompts.

    Raises:
        InputError: As `activation_patching`.

    Source:
        McGrath et al. (2023) and Rushing & Nanda (2024) for self-repair.
    """
    measured = measure_effects(
        patched, clean, corrupted, clusters, possible, axes, direction="noise", outcome=outcome,
        level=level, permutations=permutations, resamples=resamples, seed=seed,
        clusters_by=clusters_by, only=only, recovery=recovery, names=("value", "layer", "head"),
        solved=solved,
    )  # fmt: skip
    effects = Effects(**measured)
    if any(len(values) > 1 for values in effects.maps(effects.effect).values()):
        every = effects.maps(effects.effects).values()
        differences = np.concatenate([(e[:1] - e).reshape(-1, effects.prompts) for e in every])
        means = cluster_means(differences, np.array(effects.cluster))
        measured["difference"] = means.mean(axis=1)
        p = p_corrected = np.full(len(means), np.nan)
        if permutations:
            p, p_corrected = sign_flip_test(means, permutations, seed)
        measured |= {"difference_p": p, "difference_p_corrected": p_corrected}
    if direct is not None:
        given = by_component(direct)
        shape = -1, np.size(clean)
        own = np.concatenate([np.reshape(given[name], shape) for name in effects.axes])
        if only == "solved":
            own = own[:, solved_prompts(solved, clean, corrupted, outcome)]
        measured |= {"direct_effect": own, "self_repair": effects.effects - own}
    return Ablation(**measured)
