"""Effects of what one component writes on a receiver alone."""

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
class PathPatching(Effects):
    """Effects of paths; cells are the pairs of a sender and a receiver.

    Attributes:
        direction: `"denoise"`, clean writes in the corrupted run, or `"noise"`, the reverse.
    """

    direction: Direction

    def label(self, cell: dict[str, object]) -> str:
        """The sender, an arrow and the receiver."""
        kind = {"component": ""} if "sender" in cell else {}
        sender = {axis: x for axis, x in cell.items() if axis != "receiver"} | kind
        return super().label(sender | {"": "→", "receiver": cell["receiver"]})


@takes("effects of paths")
def path_patching(
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
) -> PathPatching:
    """Measure the effect of each path from a sender to a receiver.

    Only the receiver reads what the sender writes in the other run
    (`interventions.paths.path_outcomes`). Effects, tests and intervals are those of
    `activation_patching`; effects of paths do not add up.

    Args:
        patched: Outcomes with a path patched, `(senders, receivers, prompts)`, or a mapping of
            kinds of senders to such arrays, also of cells with other axes.
        clean: Outcomes of the clean runs, `(prompts,)`.
        corrupted: Outcomes of the corrupted runs, `(prompts,)`.
        clusters: Template of each prompt, `(prompts,)`; default one of its own.
        possible: Mask of the paths that exist, in the shape of the cells.
        axes: As `activation_patching` has them.
        outcome: Name of the outcome.
        solved: Mask of the prompts with a positive clean and a negative corrupted logit
            difference, `(prompts,)`; default from the outcomes, if they are logit differences.
        direction: `"denoise"` or `"noise"`.
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
        Wang et al. (2022), appendix B; Goldowsky-Dill et al. (2023).
    """
    return PathPatching(
        direction=direction,
        **measure_effects(
            patched, clean, corrupted, clusters, possible, axes, direction=direction,
            outcome=outcome, level=level, permutations=permutations, resamples=resamples, seed=seed,
            clusters_by=clusters_by, only=only, recovery=recovery, names=("sender", "receiver"),
            solved=solved,
        ),
    )  # fmt: skip
