"""Directions of most variance in one condition per unit of variance in the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from palinka.analyses import result as results
from palinka.analyses.result import Array, Result, Table
from palinka.analyses.stats import covariance
from palinka.analyses.stats.covariance import Shrinkage
from palinka.analyses.stats.eigenvalue_null import HALVES, heldout_ratio, permutation_null
from palinka.errors import InputError

# A smaller share of the data's mean square is rounding of float32.
_NO_VARIANCE = float(np.finfo(np.float32).eps) ** 2


@dataclass(frozen=True)
class GeneralizedEigendecomposition(Result):
    """Directions of A over B; fields in `_b` are those of B over A. All arrays are float64.

    Attributes:
        components: `(d, r)`, the principal components that the data were projected on.
        variance_explained: `(min(n_a + n_b, d),)`, cumulative, in per cent, of all of them.
        eigenvalues_a: `(r,)`, descending: variance in A per shrunk variance in B.
        filters_a: `(r, r)`, a column for each eigenvalue, of unit shrunk variance in B.
        scores_a: `(n_a + n_b,)`, all items, A's first, through the first filter.
        pattern_a: `(d,)`, how the first component of A over B shows in the data's own units.
        pattern_correlation: Pearson's, of the two patterns. Near 1, the same units make up both,
            as units of large variance do; it does not show that the directions are the same.
        ranks: `(2, 2)` integers: rows A and B, columns before and after shrinkage.
        variance: The requested cut, in per cent.
        shrinkage: The requested shrinkage.
        pairs: Item i of A and item i of B are a matched pair.
        observed_a: The largest eigenvalue under the recipe of the null, which has a basis of its
            own; the p-values are about this one. `None`, like all below, without permutations.
        null_a: `(permutations,)`, the largest eigenvalues under exchanged labels.
        p_value_a: `(1 + #{null >= observed}) / (permutations + 1)`.
        heldout_ratio_a: `(3,)`: geometric mean, 2.5 and 97.5 percentile, over 50 halvings of the
            items, of the variance in A over that in B where the filter was not fitted. The halves
            share items: the percentiles are a range over splits, not a confidence interval.
    """

    components: Array
    variance_explained: Array
    eigenvalues_a: Array
    eigenvalues_b: Array
    filters_a: Array
    filters_b: Array
    scores_a: Array
    scores_b: Array
    pattern_a: Array
    pattern_b: Array
    pattern_correlation: float
    ranks: NDArray[np.int64]
    variance: float
    shrinkage: Shrinkage
    pairs: bool = False
    observed_a: float | None = None
    observed_b: float | None = None
    null_a: Array | None = None
    null_b: Array | None = None
    p_value_a: float | None = None
    p_value_b: float | None = None
    heldout_ratio_a: Array | None = None
    heldout_ratio_b: Array | None = None

    def project(self, acts: ArrayLike) -> Array:
        """The top component of both directions for any activations, such as a text's tokens.

        Takes finite values, `(..., d)`, not centered; gives `(..., 2)`: A over B, B over A.
        """
        values: Any = acts if hasattr(acts, "reshape") else np.asarray(acts)
        shape, d = tuple(values.shape), len(self.components)
        if shape[-1:] != (d,):
            raise InputError(f"acts has the shape {shape}; expected (..., {d}), as the data had")
        rows = results.as_float64(values.reshape(-1, d), "acts")
        weights = self.components @ np.stack((self.filters_a[:, 0], self.filters_b[:, 0]), axis=1)
        return np.asarray((rows @ weights).reshape(*shape[:-1], 2))

    def scalars(self) -> dict[str, float]:
        """Leading eigenvalues, components, ranks, correlation, p-values and held-out ratios."""
        numbers: dict[str, Any] = {"components": self.components.shape[1]}
        numbers |= {f"eigenvalue_{c}": getattr(self, f"eigenvalues_{c}")[0] for c in "ab"}
        numbers["pattern_correlation"] = self.pattern_correlation
        for c, ranks in zip("ab", self.ranks, strict=True):
            numbers[f"rank_{c}"], numbers[f"rank_{c}_shrunk"] = ranks
            for name in (f"observed_{c}", f"p_value_{c}"):
                numbers[name] = getattr(self, name)
            names = (f"heldout_ratio_{c}{part}" for part in ("", "_low", "_high"))
            if (ratio := getattr(self, f"heldout_ratio_{c}")) is not None:
                numbers |= zip(names, ratio, strict=True)
        return {name: float(value) for name, value in numbers.items() if value is not None}

    def headline(self, units: str, conditions: Sequence[str]) -> str:
        """Variance ratios of either condition over the other, held-out ranges and p."""
        found = []
        for c, names in (("a", conditions), ("b", conditions[::-1])):
            ratio = getattr(self, f"eigenvalues_{c}")[0]
            line = f"{' over '.join(names)}: variance ratio {ratio:.4g}"
            if (ranges := getattr(self, f"heldout_ratio_{c}")) is not None:
                heldout = ", held out {:.3g} (range over {n} splits: {:.3g} to {:.3g})"
                line += heldout.format(*ranges, n=HALVES)
            p = results.p_text(getattr(self, f"p_value_{c}"), getattr(self, f"null_{c}"))
            found.append(f"{line}, {p}")
        what = " (p is about the largest ratio of any direction, not about the one held out)"
        return "; ".join(found) + what * (self.null_a is not None)

    def tables(self) -> dict[str, Table]:
        """The eigenvalues by component, and the scores by item."""
        eigenvalues: Table = {"component": np.arange(1, len(self.eigenvalues_a) + 1)}
        eigenvalues |= {"eigenvalue_a": self.eigenvalues_a, "eigenvalue_b": self.eigenvalues_b}
        items = np.arange(len(self.scores_a))
        scores: Table = {"item": items, "score_a": self.scores_a, "score_b": self.scores_b}
        return {"eigenvalues": eigenvalues, "scores": scores}


@results.takes("two conditions")
def generalized_eigendecomposition(
    a: ArrayLike, b: ArrayLike, variance: float = 99.0, shrinkage: Shrinkage = 0.01,
    permutations: int = 0, pairs: bool = False, seed: int = 0,
) -> GeneralizedEigendecomposition:  # fmt: skip
    """Find the directions that vary in one condition and not in the other, both ways.

    In the principal components of the mean of the two covariances, `S_A w = lambda S~_B w` and
    `S_B w = lambda S~_A w` are solved, the right covariance shrunk towards its mean eigenvalue.

    Null: each condition is centered on its own mean, then labels are exchanged within pairs (item
    i of A with item i of B, each pair swapped with probability 1/2), or over all items without
    `pairs`. Observed and null values come from a recipe of their own that does not use the labels
    otherwise: principal components of all centered items, the same cut, both covariances shrunk.
    What is exchanged are the `n - 1` uncorrelated contrasts of the `n` centered items: p-values
    are uniform under the null for independent normal items, or pairs. With few items that differ
    much in their length they are too small (at .05, 20 and 20 items of a multivariate t with 4
    degrees of freedom are rejected in .09 of data sets). Held-out check: halves of the items, in
    which pairs stay together.

    Args:
        a: Items of the first condition, `(n_a, d)`, at least three.
        b: Items of the second, `(n_b, d)`, at least three.
        variance: Per cent; the principal components before the one at which the cumulative share
            exceeds it are kept. At 100 it keeps all that have any variance.
        shrinkage: From 0 (none) to below 1, or `"ledoit_wolf"` or `"oas"`, which find it in the
            data by scikit-learn's formulas, for each condition on its own.
        permutations: Number of exchanged labelings; any also bring the held-out check.
        pairs: Item i of A and item i of B are a matched pair, such as two versions of a sentence.
        seed: Of permutations and halves.

    Source:
        Cohen (2022), "A tutorial on generalized eigendecomposition for denoising, contrast
        enhancement, and dimension reduction"; patterns: Haufe et al. (2014).
    """
    if not 0.0 < variance <= 100.0:
        raise InputError(f"variance={variance}; expected per cent, above 0 and at most 100")
    if not isinstance(shrinkage, str) and not 0.0 <= shrinkage < 1.0:
        estimators = "'ledoit_wolf' or 'oas'"
        raise InputError(f"shrinkage is {shrinkage}; give a number from 0 to below 1, {estimators}")
    a, b = results.two_conditions(a, b, 3, pairs, "pairs=False")
    # The scatter of these rows is the mean of the two covariances, which is not formed itself.
    weighted = [(x - x.mean(axis=0)) / np.sqrt(2 * (len(x) - 1)) for x in (a, b)]
    mean_square = max((x**2).sum() / len(x) for x in (a, b))
    for condition, rows in zip("ab", weighted, strict=True):
        if (rows**2).sum() <= _NO_VARIANCE * mean_square:
            raise InputError(f"the items of {condition} are all alike; give items that vary")
    basis = covariance.principal_components(np.concatenate(weighted))
    r = basis.before(variance)
    components = basis.axes(r)
    y = np.concatenate((a, b)) @ components
    parts = y[: len(a)], y[len(a) :]
    plain = [np.cov(part, rowvar=False).reshape(r, r) for part in parts]
    centered = (part - part.mean(axis=0) for part in parts)
    intensities = [covariance.shrinkage_intensity(part, shrinkage) for part in centered]
    regular = [covariance.shrunk(s, gamma) for s, gamma in zip(plain, intensities, strict=True)]
    smallest = r * np.finfo(np.float64).eps * max(np.linalg.norm(s, 2) for s in plain)
    ranks = np.linalg.matrix_rank(np.array([plain, regular]), tol=smallest, hermitian=True).T
    for condition, (_, rank) in zip("ab", ranks, strict=True):
        if rank < r:
            fault = f"has rank {rank} in {r} principal components and cannot be inverted"
            advice = "give a larger shrinkage or a smaller variance"
            raise InputError(f"the covariance of {condition} {fault}; {advice}")
    fields: dict[str, Any] = {}
    for condition, own, other in (("a", 0, 1), ("b", 1, 0)):
        values, filters = scipy.linalg.eigh(plain[own], regular[other], check_finite=False)
        filters = filters[:, ::-1]  # descending
        # The sign makes the largest element of the pattern positive.
        patterns = components @ (regular[own] @ filters)
        largest = np.abs(patterns).argmax(axis=0)
        signs = np.where(patterns[largest, np.arange(r)] < 0.0, -1.0, 1.0)
        fields[f"eigenvalues_{condition}"] = values[::-1].copy()
        fields[f"filters_{condition}"] = filters * signs
        fields[f"scores_{condition}"] = y @ fields[f"filters_{condition}"][:, 0]
        fields[f"pattern_{condition}"] = patterns[:, 0] * signs[0]
    notes = []
    if isinstance(shrinkage, str):
        notes.append(f"{shrinkage} shrank a by {intensities[0]:.4g} and b by {intensities[1]:.4g}")
    if permutations:
        observed, null = permutation_null(a, b, variance, shrinkage, permutations, pairs, seed)
        p_values = (1 + (null >= observed).sum(axis=0)) / (permutations + 1)
        ratios: Sequence[Array | None] = (None, None)
        try:
            ratios = heldout_ratio(*parts, shrinkage, seed)
        except np.linalg.LinAlgError:
            notes.append("no held-out check: half of the items are too few, or do not vary enough")
        for column, condition in enumerate("ab"):
            fields[f"observed_{condition}"] = float(observed[column])
            fields[f"null_{condition}"] = null[:, column].copy()
            fields[f"p_value_{condition}"] = float(p_values[column])
            fields[f"heldout_ratio_{condition}"] = ratios[column]
    correlation = float(np.corrcoef(fields["pattern_a"], fields["pattern_b"])[0, 1])
    return GeneralizedEigendecomposition(
        components=components, variance_explained=basis.cumulative, pattern_correlation=correlation,
        ranks=ranks, variance=float(variance), shrinkage=shrinkage, pairs=pairs, notes=tuple(notes),
        **fields,
    )  # fmt: skip
