"""Per-unit t-tests between two conditions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, stdtr
from scipy.stats import false_discovery_control

from palinka.analyses.result import Result, Table, as_float64, scaled, takes
from palinka.analyses.stats.permutation import max_t
from palinka.errors import InputError

Test = Literal["paired", "welch"]
Correction = Literal["bonferroni", "holm", "benjamini_hochberg", "max_t"]

MINIMUM_ITEMS = 3
# Fewer items of unlike variance have too few sign-flips for `max_t` to hold its error rate.
MINIMUM_ITEMS_WELCH_MAX_T = 8
# With fewer, Welch's p is 1.1 to 2.4 times too often below 0.00025, in simulation.
FEW_ITEMS_WELCH = 12


@dataclass(frozen=True)
class UnitTuning(Result):
    """Per-unit differences between two conditions; arrays are `(units,)`.

    Attributes:
        t: The statistic of `b - a`; 0 where a unit has no variance.
        p: Two-sided p-values, each unit by itself; 1 where a unit has no variance.
        p_adjusted: The same after the correction for all units.
        significant: True where the difference holds after the correction.
        effect_size: Hedges' g of `b - a`; 0 where a unit has no variance.
    """

    t: NDArray[np.float64]
    p: NDArray[np.float64]
    p_adjusted: NDArray[np.float64]
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
        """Number of units."""
        return len(self.t)

    @property
    def units_significant(self) -> int:
        """Number of units that differ after the correction."""
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


@takes("two conditions")
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

    Every p-value takes the items (pairs, under `"paired"`) to be independent of each other; words
    of one stem or sentences of one frame are not. T-tests are exact for normal items
    (differences); with few items of very skewed activations, the rate of false positives can
    exceed `alpha`. Welch's p is an approximation, whose smallest values are too small where a
    condition has few items; `"max_t"` does not rely on it.

    Args:
        a: Activations under the first condition, `(items, units)`.
        b: Activations under the second, `(items, units)`; the same items in the same order
            where `test` is `"paired"`.
        test: `"paired"` (one-sample t of the differences) or `"welch"` (unequal variances),
            for lists that are not aligned.
        correction: `"bonferroni"`, `"holm"` and `"max_t"` hold the chance of any false positive
            to `alpha`, `"benjamini_hochberg"` the expected share of false ones among the
            positives. `"max_t"` compares with the largest |t| over all units under random
            sign-flips of the differences (`"paired"`), or of the residuals about each
            condition's mean (`"welch"`, at least 8 items in each).
        alpha: The error rate after correction.
        permutations: Number of sign-flips under `"max_t"`.
        seed: Seed of the sign-flips.

    Returns:
        One t, p, adjusted p and effect size per unit; significant where the adjusted p is at most
        `alpha` (below it, under `"bonferroni"`).

    Raises:
        InputError: If a condition has fewer than three items, if the numbers of units differ
            or, under `"paired"`, those of items, if a matrix holds NaN or infinities, or if an
            option is not one of the above.

    Source:
        Student (1908); Welch (1947); Hedges (1981); Lakens (2013) for g of paired differences.
    """
    first, second = as_float64(a, "a"), as_float64(b, "b")
    _check(first, second, test, correction, alpha, permutations)
    both = scaled(np.concatenate([first, second]), axis=0)
    first, second, largest = both[: len(first)], both[len(first) :], np.abs(both).max(axis=0)
    samples = [second - first] if test == "paired" else [-first, second]
    difference, error, freedom, effect_size = _moments(samples)
    # A spread no larger than the rounding of the activations themselves is none.
    constant = error <= 10.0 * np.finfo(np.float64).eps * largest / np.sqrt(len(first))
    varies = ~constant

    t = np.divide(difference, error, out=np.zeros(len(error)), where=varies)
    p = np.where(varies, 2.0 * stdtr(freedom, -np.abs(t)), 1.0)
    if correction == "max_t":
        p_adjusted = np.ones(len(p))
        if varies.any():
            varying = [sample[:, varies] for sample in samples]
            p_adjusted[varies] = max_t(t[varies], varying, permutations, seed)
    else:
        p_adjusted = _adjusted(p, correction)
    # The reference rule is strict.
    significant = p < alpha / len(p) if correction == "bonferroni" else p_adjusted <= alpha

    notes = []
    if constant.any():
        spread = "in their differences" if test == "paired" else "within the conditions"
        notes.append(f"{constant.sum()} of {len(p)} units have no variance {spread}: t = 0, p = 1")
    fewest = min(len(first), len(second))
    if test == "welch" and correction != "max_t" and fewest < FEW_ITEMS_WELCH:
        notes.append(
            f"a condition has {fewest} items: Welch's smallest p-values are approximate, and with "
            f"hundreds of units false positives can be twice as frequent as {alpha:g}"
        )
    return UnitTuning(
        t,
        p,
        p_adjusted,
        significant & varies,
        np.where(varies, effect_size, 0.0),
        notes=tuple(notes),
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
    if test == "welch" and correction == "max_t" and fewest < MINIMUM_ITEMS_WELCH_MAX_T:
        raise InputError(
            f"a condition has {fewest} items; under welch, max_t needs at least "
            f'{MINIMUM_ITEMS_WELCH_MAX_T}: use correction="holm"'
        )
    if test == "paired" and len(a) != len(b):
        raise InputError(
            f"a has {len(a)} items and b has {len(b)}, which cannot be paired; give aligned "
            'lists, or use test="welch"'
        )


def _moments(samples: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], ...]:
    """Sum of the means, its standard error, degrees of freedom (Welch) and Hedges' g."""
    difference, squared_error, inverse_freedom, squares = np.zeros((4, samples[0].shape[1]))
    freedom = 0
    for sample in samples:
        n = len(sample)
        variance = sample.var(axis=0, ddof=1)
        difference += sample.mean(axis=0)
        squared_error += variance / n
        inverse_freedom += np.square(variance / n) / (n - 1)
        squares += (n - 1) * variance
        freedom += n - 1
    # Hedges' exact J removes the bias of a standardized mean difference.
    half = freedom / 2.0
    factor = np.exp(gammaln(half) - gammaln(half - 0.5)) / np.sqrt(half)
    g = factor * _quotient(difference, np.sqrt(squares / freedom))
    welch = _quotient(np.square(squared_error), inverse_freedom)
    return difference, np.sqrt(squared_error), welch, g


def _adjusted(p: NDArray[np.float64], correction: str) -> NDArray[np.float64]:
    """P-values adjusted after Bonferroni, Holm (1979) or Benjamini & Hochberg (1995)."""
    if correction == "benjamini_hochberg":
        return np.asarray(false_discovery_control(p))
    if correction == "bonferroni":
        return np.minimum(1.0, len(p) * p)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


def _quotient(
    numerators: NDArray[np.float64], denominators: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Quotients, and 0 where the denominator is 0."""
    return np.divide(
        numerators, denominators, out=np.zeros(len(numerators)), where=denominators > 0
    )
