"""Which single units two conditions drive apart."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, stdtr

from palinka.analyses.max_t import paired_max_t, unpaired_max_t
from palinka.analyses.multiple_comparisons import benjamini_hochberg, bonferroni, holm
from palinka.analyses.result import Result, Table, as_float64
from palinka.errors import InputError

Test = Literal["paired", "welch"]
Correction = Literal["bonferroni", "holm", "benjamini_hochberg", "max_t"]

MINIMUM_ITEMS = 3


@dataclass(frozen=True)
class UnitTuning(Result):
    """Where two conditions drive single units apart; arrays are `(units,)`.

    Attributes:
        t: The statistic of `b - a`; 0 where a unit has no variance.
        p: Two-sided p-values, each unit by itself; 1 where a unit has no variance.
        significant: Where the difference holds after the correction for all units.
        effect_size: Hedges' g of `b - a`; 0 where a unit has no variance.
    """

    t: NDArray[np.float64]
    p: NDArray[np.float64]
    significant: NDArray[np.bool_]
    effect_size: NDArray[np.float64]

    headline: ClassVar[tuple[str, ...]] = (
        "units",
        "units_significant",
        "most_positive",
        "most_negative",
        "most_positive_t",
        "most_negative_t",
    )

    @property
    def units(self) -> int:
        """How many units were tested."""
        return len(self.t)

    @property
    def units_significant(self) -> int:
        """How many units differ after the correction."""
        return int(self.significant.sum())

    @property
    def most_positive(self) -> int:
        """The unit that prefers `b` most."""
        return int(self.t.argmax())

    @property
    def most_negative(self) -> int:
        """The unit that prefers `a` most."""
        return int(self.t.argmin())

    @property
    def most_positive_t(self) -> float:
        """The t of the unit that prefers `b` most."""
        return float(self.t.max())

    @property
    def most_negative_t(self) -> float:
        """The t of the unit that prefers `a` most."""
        return float(self.t.min())

    def tables(self) -> dict[str, Table]:
        """The 100 units with the largest |t|, largest first."""
        order = np.argsort(-np.abs(self.t), kind="stable")[:100]
        columns = {name: values[order] for name, values in self.arrays().items()}
        return {"strongest_units": {"unit": order, **columns}}


def unit_tuning(
    a: ArrayLike,
    b: ArrayLike,
    test: Test = "paired",
    correction: Correction = "bonferroni",
    alpha: float = 0.05,
    *,
    permutations: int = 1000,
    seed: int = 0,
) -> UnitTuning:
    """Test, unit by unit, whether condition `b` drives activations above condition `a`.

    With `d` the differences of the paired items, `s` standard deviations with `n - 1`, and `J`
    Hedges' factor for small samples, the effect size is `J(n - 1) mean(d) / s(d)` under
    `"paired"` and `J(n_a + n_b - 2) (mean(b) - mean(a)) / s_pooled` under `"welch"`.

    Args:
        a: Activations under the first condition, `(items, units)`.
        b: Activations under the second, `(items, units)`; the same items in the same order
            where `test` is `"paired"`.
        test: `"paired"` (one-sample t of the differences) or `"welch"` (unequal variances),
            for lists that are not aligned.
        correction: `"bonferroni"`, `"holm"` and `"max_t"` hold the chance of any false positive
            to `alpha`, `"benjamini_hochberg"` the expected share of false ones among the
            positives. `"max_t"` compares with the largest |t| over all units under random
            sign-flips of the differences (`"paired"`) or shuffled conditions (`"welch"`).
        alpha: The error rate after correction.
        permutations: How many sign-flips or shuffles `"max_t"` takes.
        seed: Determines them.

    Returns:
        One t, p and effect size per unit, with corrected significance.

    Raises:
        InputError: If a condition has fewer than three items, if the numbers of units differ
            or, under `"paired"`, those of items, if a matrix holds NaN or infinities, or if an
            option is not one of the above.

    Source:
        Student (1908); Welch (1947); Hedges (1981); Lakens (2013) for g of paired differences.
    """
    first, second = as_float64(a, "a"), as_float64(b, "b")
    _check(first, second, test, correction, alpha, permutations)
    if test == "paired":
        difference, error, freedom, effect_size = _paired(second - first)
    else:
        difference, error, freedom, effect_size = _welch(first, second)
    # A spread no larger than the rounding of the activations themselves is none.
    largest = np.maximum(np.abs(first).max(axis=0), np.abs(second).max(axis=0))
    constant = error <= 10.0 * np.finfo(np.float64).eps * largest / np.sqrt(len(first))
    varies = ~constant

    t = np.divide(difference, error, out=np.zeros(len(error)), where=varies)
    p = np.where(varies, 2.0 * stdtr(freedom, -np.abs(t)), 1.0)
    if correction == "max_t":
        corrected = np.ones(len(p))
        if varies.any():
            corrected[varies] = (
                paired_max_t((second - first)[:, varies], permutations, seed)
                if test == "paired"
                else unpaired_max_t(first[:, varies], second[:, varies], permutations, seed)
            )
        significant = corrected <= alpha
    else:
        rules = {"bonferroni": bonferroni, "holm": holm, "benjamini_hochberg": benjamini_hochberg}
        significant = rules[correction](p, alpha)

    notes = []
    if constant.any():
        spread = "in their differences" if test == "paired" else "within the conditions"
        notes.append(f"{constant.sum()} of {len(p)} units have no variance {spread}: t = 0, p = 1")
    return UnitTuning(
        t, p, significant & varies, np.where(varies, effect_size, 0.0), notes=tuple(notes)
    )


def _check(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    test: str,
    correction: str,
    alpha: float,
    permutations: int,
) -> None:
    for option, given, known in (("test", test, Test), ("correction", correction, Correction)):
        if given not in get_args(known):
            raise InputError(f"{option} is {given!r}; expected one of {', '.join(get_args(known))}")
    if not 0.0 < alpha < 1.0:
        raise InputError(f"alpha is {alpha}; expected a rate between 0 and 1")
    if correction == "max_t" and permutations < 1:
        raise InputError(f"permutations is {permutations}; max_t needs at least one")
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"a has {a.shape[1]} units and b has {b.shape[1]}; expected the same units"
        )
    fewest = min(len(a), len(b))
    if fewest < MINIMUM_ITEMS:
        raise InputError(f"a condition has {fewest} items; expected at least {MINIMUM_ITEMS}")
    if test == "paired" and len(a) != len(b):
        raise InputError(
            f"a has {len(a)} items and b has {len(b)}, which cannot be paired; give aligned "
            'lists, or use test="welch"'
        )


Moments = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _paired(differences: NDArray[np.float64]) -> Moments:
    """Mean, standard error, degrees of freedom and Hedges' g of differences."""
    items = len(differences)
    mean, spread = differences.mean(axis=0), differences.std(axis=0, ddof=1)
    g = _small_sample_factor(items - 1) * _quotient(mean, spread)
    return mean, spread / np.sqrt(items), np.full(len(mean), items - 1.0), g


def _welch(a: NDArray[np.float64], b: NDArray[np.float64]) -> Moments:
    """Difference of means, its standard error, degrees of freedom and Hedges' g."""
    n_a, n_b = len(a), len(b)
    difference = b.mean(axis=0) - a.mean(axis=0)
    variance_a, variance_b = a.var(axis=0, ddof=1), b.var(axis=0, ddof=1)
    share_a, share_b = variance_a / n_a, variance_b / n_b
    squared_error = share_a + share_b
    freedom = _quotient(
        np.square(squared_error), np.square(share_a) / (n_a - 1) + np.square(share_b) / (n_b - 1)
    )
    pooled = np.sqrt(((n_a - 1) * variance_a + (n_b - 1) * variance_b) / (n_a + n_b - 2))
    g = _small_sample_factor(n_a + n_b - 2) * _quotient(difference, pooled)
    return difference, np.sqrt(squared_error), freedom, g


def _quotient(
    numerators: NDArray[np.float64], denominators: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Quotients, and 0 where the denominator is 0."""
    return np.divide(
        numerators, denominators, out=np.zeros(len(numerators)), where=denominators > 0
    )


def _small_sample_factor(freedom: int) -> float:
    """Hedges' exact J, which removes the bias of a standardized mean difference."""
    half = freedom / 2.0
    return float(np.exp(gammaln(half) - gammaln(half - 0.5)) / np.sqrt(half))
