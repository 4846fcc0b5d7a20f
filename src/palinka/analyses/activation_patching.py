"""Effects of patching activations of one prompt into the run of another."""

from typing import Unpack

from numpy.typing import ArrayLike

from palinka.analyses.result import takes
from palinka.analyses.stats.effects import (
    Cells,
    Direction,
    EffectArguments,
    Effects,
    measure_effects,
)


@takes("effects of patching")
def activation_patching(
    patched: Cells, clean: ArrayLike, corrupted: ArrayLike, *, direction: Direction = "denoise",
    **options: Unpack[EffectArguments],
) -> Effects:  # fmt: skip
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
        direction: `"denoise"` or `"noise"`.
        **options: Clusters, axes and outcome; level, permutations and other options.

    Source:
        Heimersheim & Nanda (2024) for the directions; Westfall & Young (1993) for the maximum.
    """
    return Effects(**measure_effects(patched, clean, corrupted, direction=direction, **options))
