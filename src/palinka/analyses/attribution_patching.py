"""Effects of patching, estimated from gradients, beside those that were measured."""

from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.result import Array, Table, takes
from palinka.analyses.stats.effects import (
    Cells,
    Direction,
    EffectArguments,
    Effects,
    as_table,
    by_component,
    measure_effects,
)

WORST = 10
AGREEMENT = ("pearson", "spearman", "sign_agreement", "recall_at_k")


@dataclass(frozen=True)
class AttributionPatching(Effects):
    """Estimated effects of patching, cell by cell: `effect`, its test, and its recovery.

    The agreement is that over the cells whose patch was run, but for those that have no effect
    either way.

    Attributes:
        exact: Mean effect of the patch itself over clusters, `(cells,)`; NaN where it was not run.
        pearson: Correlation of estimated and exact effects; NaN for fewer than two cells.
        spearman: Correlation of their ranks.
        sign_agreement: Share of the cells whose effects have the same sign.
        recall_at_k: Share of the `k` cells with the largest exact |effect| that are among the `k`
            with the largest estimates.
        k: That number, at most the number of cells that were compared.
        compared: Number of cells that were compared.
    """

    verb = "are estimated to change"
    scalar_units: ClassVar = {
        "pearson": "(correlation of estimated with exact effects)",
        "spearman": "(the same of their ranks)",
        "sign_agreement": "(share of cells whose estimate has the right sign)",
        "recall_at_k": "(share of the k largest effects among the k largest estimates)",
        "compared": "cells whose patch was run",
    }
    exact: Array
    pearson: float
    spearman: float
    sign_agreement: float
    recall_at_k: float
    k: int
    compared: int

    @property
    def estimate(self) -> Array:
        """Mean estimated effect over clusters, `(cells,)`."""
        return self.effect

    @property
    def worst(self) -> NDArray[np.int64]:
        """Numbers of the cells whose estimate is farthest from the exact effect, `(10,)`."""
        far = np.argsort(-np.abs(self.effect - self.exact), kind="stable")  # NaN come last
        return far[: min(WORST, self.compared)]

    def scalars(self) -> dict[str, float]:
        """The agreement, then the strongest cells and numbers of the whole."""
        found = {name: float(getattr(self, name)) for name in (*AGREEMENT, "compared")}
        return {name: v for name, v in found.items() if not np.isnan(v)} | super().scalars()

    def tables(self) -> dict[str, Table]:
        """The table `cells`, and `worst`, the cells with the largest errors."""
        cells, effect, exact = self.cells(), self.effect, self.exact
        rows = [cells[i] | {"estimate": effect[i], "exact": exact[i]} for i in self.worst]
        return super().tables() | {"worst": as_table(rows)}


@takes("estimated effects of patches")
def attribution_patching(
    estimated: Cells, clean: ArrayLike, corrupted: ArrayLike, patched: Cells | None = None, *,
    direction: Direction = "denoise", k: int = 10, **options: Unpack[EffectArguments],
) -> AttributionPatching:  # fmt: skip
    """Measure the estimated effects of patching, and how well they agree with actual runs.

    An estimate is the change of the outcome to first order, `(h' - h) · dm/dh`, which a single
    backward pass gives for every cell (`interventions.attribution.attribute`). It fails for queries
    and keys under a saturated softmax, for the residual stream of early layers, and where direct
    and indirect effects cancel: read `worst` before the map. Cells that were verified because
    their estimates are large make the agreement better than that of all cells.

    Args:
        estimated: Outcomes of the patched runs as estimated, in the shapes that
            `activation_patching` takes.
        clean: Outcomes of the clean runs, `(prompts,)`.
        corrupted: Outcomes of the corrupted runs, `(prompts,)`.
        patched: Outcomes of the patched runs, in the shape of `estimated`; NaN for cells whose
            patch was not run.
        direction: `"denoise"` or `"noise"`.
        k: Number of cells of `recall_at_k`.
        **options: Those of `activation_patching`.

    Source:
        Nanda (2023), attribution patching; Kramár et al. (2024) for where it fails.
    """
    fields = measure_effects(estimated, clean, corrupted, direction=direction, **options)
    exact = np.full(len(fields["effect"]), np.nan)
    if patched is not None:
        own = {name: np.asarray(values) for name, values in by_component(patched).items()}
        filled = {name: np.nan_to_num(values) for name, values in own.items()}
        again: Any = {**options, "direction": direction, "permutations": 0, "resamples": 0}
        exact = measure_effects(filled, clean, corrupted, **again)["effect"]
        run = [~np.isnan(values).any(axis=-1).ravel() for values in own.values()]
        exact[~np.concatenate(run)] = np.nan
    estimate = fields["effect"]
    compared = np.isfinite(exact) & ((estimate != 0.0) | (exact != 0.0))
    found = _agreement(estimate[compared], exact[compared], k)
    return AttributionPatching(exact=exact, **found, **fields)


def _agreement(estimate: Array, exact: Array, k: int) -> dict[str, Any]:
    """The fields of `AttributionPatching` that compare the effects of some cells."""
    from scipy.stats import rankdata  # slow to import

    k, compared = min(k, len(exact)), len(exact)
    largest = [set(np.argsort(-np.abs(x), kind="stable")[:k]) for x in (estimate, exact)]
    found = dict.fromkeys(AGREEMENT, np.nan)
    if compared > 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            found["pearson"] = float(np.corrcoef(estimate, exact)[0, 1])
            found["spearman"] = float(np.corrcoef(rankdata(estimate), rankdata(exact))[0, 1])
        found["sign_agreement"] = float((np.sign(estimate) == np.sign(exact)).mean())
        found["recall_at_k"] = len(largest[0] & largest[1]) / k
    return {**found, "k": k, "compared": compared}
