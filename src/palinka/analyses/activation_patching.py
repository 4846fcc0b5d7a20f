"""Effects of patching activations of one prompt into the run of another."""

from dataclasses import dataclass

from numpy.typing import ArrayLike

from palinka.analyses.result import takes
from palinka.analyses.stats.effects import (
    Axes,
    Cells,
    ClustersBy,
    Direction,
    Effects,
    Only,
    Recovery,
    measure_effects,
)


@dataclass(frozen=True)
class ActivationPatching(Effects):
    """Effects of patching, cell by cell.

    Attributes:
        direction: `"denoise"`, clean activations in the corrupted run, or `"noise"`, the reverse.
    """

    direction: Direction


@takes("effects of patching")
def activation_patching(
    patched: Cells,
    clean: ArrayLike,
    corrupted: ArrayLike,
    clusters: ArrayLike | None = None,
    possible: Cells | None = None,
    axes: Axes | None = None,
    outcome: str = "logit_difference",
    solved: ArrayLike | None = None,
    *,
    direction: Direction = "denoise",
    level: float = 0.95,
    permutations: int = 1000,
    resamples: int = 1000,
    seed: int = 0,
    clusters_by: ClustersBy = "template",
    only: Only = None,
    recovery: Recovery = "ratio_of_sums",
) -> ActivationPatching:
    """Measure the effect of patching each cell, and how much of the gap it recovers.

    The gap of a prompt is its outcome if clean minus that if corrupted. An effect is the outcome
    with the patch minus that of the run it is patched into: the corrupted one to denoise (is the
    cell sufficient?), the clean one to noise (is it necessary?). The recovery is `Σ (patched -
    corrupted) / Σ gap` over the prompts in both directions, 0 as corrupted and 1 as clean; values
    outside are real. Effects of cells do not add up, as each includes interactions with others.

    Prompts of one template are alike, so that templates are the unit of inference: effects are
    averaged within a template first, tests flip the signs of whole templates, and intervals
    resample them. Where templates have equally many prompts, effect / gap is the recovery (to
    denoise). The test is exact where effects are symmetric about 0 if nothing is there. It is
    corrected by the maximum over the cells of all components together.

    Args:
        patched: Outcomes of the patched runs, `(layers, positions, prompts)` or cells of another
            number of axes, or a mapping of components to such arrays.
        clean: Outcomes of the clean runs, `(prompts,)`.
        corrupted: Outcomes of the corrupted runs, `(prompts,)`.
        clusters: Template of each prompt, `(prompts,)`; default one of its own.
        possible: Mask of the cells that can have an effect, in the shape of the cells. Others,
            such as positions before the first differing token, are exactly 0 with p = 1.
        axes: By component the names of the axes of its cells and the labels of the entries, such
            as `{"resid": {"layer": range(12), "position": ["s1", "end"]}}`.
        outcome: Name of the outcome; `"rank"` and `"probability"` have no recovery.
        solved: Mask of the prompts with a positive clean and a negative corrupted logit
            difference, `(prompts,)`; default from the outcomes, if they are logit differences.
        direction: `"denoise"` or `"noise"`.
        level: Coverage of the intervals; corrected p-values up to `1 - level` are significant.
        permutations: Number of sign flips; all patterns of signs where there are no more. 0 for
            no p-values.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of the flips and the resamples.
        clusters_by: `"template"`, or `"prompt"` to take prompts as independent.
        only: `"solved"` leaves out prompts without a positive clean and a negative corrupted
            logit difference; `"all"` also analyzes prompts fewer than half of which are solved.
        recovery: `"ratio_of_sums"`, or `"mean_of_ratios"` of single prompts, those without a gap
            left out.

    Raises:
        InputError: If arrays do not fit, the model solves fewer than half of the prompts, or there
            are fewer than 6 clusters, whose sign flips have no p below 0.05.

    Source:
        Heimersheim & Nanda (2024) for the directions; Westfall & Young (1993) for the maximum.
    """
    return ActivationPatching(
        direction=direction,
        **measure_effects(
            patched, clean, corrupted, clusters, possible, axes, direction=direction,
            outcome=outcome, level=level, permutations=permutations, resamples=resamples, seed=seed,
            clusters_by=clusters_by, only=only, recovery=recovery, solved=solved,
        ),
    )  # fmt: skip
