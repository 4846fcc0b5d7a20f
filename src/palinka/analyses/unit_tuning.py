"""Per-unit t-tests between two conditions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, stdtr, stdtrit

from palinka.analyses import result as results
from palinka.analyses.result import Array, Mask, Result, Table
from palinka.analyses.stats.comparison import adjusted_p_values
from palinka.analyses.stats.permutation import max_t
from palinka.errors import InputError

Test = Literal["paired", "welch"]
Correction = Literal["bonferroni", "holm", "benjamini_hochberg", "max_t"]
NAMES = {
    "paired": "paired t", "welch": "Welch's t", "bonferroni": "Bonferroni", "holm": "Holm",
    "benjamini_hochberg": "Benjamini-Hochberg", "max_t": "max |t|",
}  # fmt: skip

MIN_ITEMS = 3
# Fewer items of unlike variance have too few sign-flips for `max_t` to hold its error rate.
MIN_ITEMS_WELCH_MAX_T = 8
# With fewer, Welch's p is 1.1 to 2.4 times too often below 0.00025, in simulation.
FEW_ITEMS_WELCH = 12


@dataclass(frozen=True)
class UnitTuning(Result):
    """Per-unit differences between two conditions; arrays are `(units,)`.

    Attributes:
        t: The statistic of `b - a`; 0 where a unit has no variance.
        p: Two-sided p-values, each unit by itself; 1 where a unit has no variance.
        p_adjusted: The same after the correction for all units.
        significant: True where the adjusted p is at most `alpha` (below it, by Bonferroni's rule).
        effect_size: Hedges' g of `b - a`; 0 where a unit has no variance.
        threshold: The |t| from which each unit is significant; infinite without variance.
        test: The requested test.
        correction: The requested correction.
        alpha: The requested error rate.
    """

    scalar_units: ClassVar = {"most_positive": "({2} over {1})", "most_negative": "({1} over {2})"}

    t: Array
    p: Array
    p_adjusted: Array
    significant: Mask
    effect_size: Array
    threshold: Array
    test: Test
    correction: Correction
    alpha: float

    @property
    def most_positive(self) -> int:
        """The unit that prefers `b` most."""
        return int(self.t.argmax())

    @property
    def most_negative(self) -> int:
        """The unit that prefers `a` most."""
        return int(self.t.argmin())

    def scalars(self) -> dict[str, float]:
        """Numbers of units; those that prefer either condition most, their t and adjusted p."""
        numbers = {"units": len(self.t), "units_significant": self.significant.sum()}
        for name in ("most_positive", "most_negative"):
            unit = getattr(self, name)
            numbers |= {name: unit, f"{name}_t": self.t[unit]}
            numbers[f"{name}_p_value"] = self.p_adjusted[unit]
        return {name: float(value) for name, value in numbers.items()}

    def headline(self, units: str, conditions: Sequence[str]) -> str:
        """Number of units that differ, and those that prefer either condition most."""
        extremes = self.most_negative, self.most_positive
        strongest = [
            f"{condition} most {units.removesuffix('s')} {unit} (t {self.t[unit]:.3g}, "
            f"{results.p_text(self.p_adjusted[unit], alpha=self.alpha)})"
            for condition, unit in zip(conditions, extremes, strict=True)
        ]
        rule = f"{NAMES[self.test]}, {NAMES[self.correction]} over {len(self.t):,} {units}"
        differ = f"{self.significant.sum():,} of {len(self.t):,} {units} differ"
        return f"{differ} at alpha {self.alpha:g} ({rule}); for {', for '.join(strongest)}"

    def tables(self) -> dict[str, Table]:
        """The 100 units with the largest |t|, largest first."""
        order = np.argsort(-np.abs(self.t), kind="stable")[:100]
        columns = {name: values[order] for name, values in self.arrays().items()}
        return {"strongest_units": {"unit": order, **columns}}


@results.takes("two conditions")
def unit_tuning(
    a: ArrayLike, b: ArrayLike, test: Test = "paired", correction: Correction = "bonferroni",
    alpha: float = 0.05, *, permutations: int = 1000, seed: int = 0,
) -> UnitTuning:  # fmt: skip
    """Test, unit by unit, whether condition `b` drives activations above condition `a`.

    With `d` the differences of the paired items, `s` standard deviations with `n - 1`, and `J`
    Hedges' factor for small samples, the effect size is `J(n - 1) mean(d) / s(d)` under
    `"paired"` and `J(n_a + n_b - 2) (mean(b) - mean(a)) / s_pooled` under `"welch"`.

    Items (pairs, under `"paired"`) are taken to be independent, as words of one stem or sentences
    of one frame are not. T-tests are exact for normal items (differences); few items of very skewed
    activations can have more false positives than `alpha`. Welch's p is an approximation, too small
    in the tail where a condition has few items; `"max_t"` does not rely on it.

    Args:
        a: Activations under the first condition, `(items, units)`, at least three items.
        b: Those under the second; the same items in the same order if `test` is `"paired"`.
        test: `"paired"` (t of the differences), or `"welch"` (unequal variances) for other lists.
        correction: `"bonferroni"`, `"holm"` and `"max_t"` hold the chance of any false positive
            to `alpha`, `"benjamini_hochberg"` the expected share of false ones among the
            positives. `"max_t"` compares with the largest |t| over all units under random
            sign-flips of the differences (`"paired"`), or of the residuals about each
            condition's mean (`"welch"`, at least 8 items in each).
        alpha: The error rate after correction.
        permutations: Number of sign-flips under `"max_t"`.
        seed: Seed of the sign-flips.

    Source:
        Student (1908); Welch (1947); Hedges (1981); Lakens (2013) for g of paired differences.
    """
    if not 0.0 < alpha < 1.0:
        raise InputError(f"alpha is {alpha}; expected a rate between 0 and 1")
    if correction == "max_t" and permutations < 1:
        raise InputError(f"permutations is {permutations}; max_t needs at least one")
    paired = test == "paired"
    first, second = results.two_conditions(a, b, MIN_ITEMS, paired, 'test="welch"')
    fewest = min(len(first), len(second))
    if not paired and correction == "max_t" and fewest < MIN_ITEMS_WELCH_MAX_T:
        needed = f"under welch, max_t needs at least {MIN_ITEMS_WELCH_MAX_T}"
        raise InputError(f'a condition has {fewest} items; {needed}: use correction="holm"')
    both = results.scaled(np.concatenate([first, second]), axis=0)
    first, second, largest = both[: len(first)], both[len(first) :], np.abs(both).max(axis=0)
    samples = [second - first] if paired else [-first, second]
    difference, error, freedom, effect_size = _moments(samples)
    # A spread no larger than the rounding of the activations themselves is none.
    varies = error > 10.0 * np.finfo(np.float64).eps * largest / np.sqrt(len(first))
    t = np.where(varies, _quotient(difference, error), 0.0)
    p = np.where(varies, 2.0 * stdtr(freedom, -np.abs(t)), 1.0)
    p_adjusted, threshold = np.ones(len(p)), np.full(len(p), np.inf)
    if correction != "max_t":
        p_adjusted = adjusted_p_values(p, correction)
    elif varies.any():
        varying = [sample[:, varies] for sample in samples]
        found = max_t(t[varies], varying, permutations, seed, alpha)
        p_adjusted[varies], threshold[varies] = found
    # The reference rule is strict.
    significant = p < alpha / len(p) if correction == "bonferroni" else p_adjusted <= alpha
    significant &= varies
    if correction != "max_t":
        positive = int(significant.sum())
        tests = {"holm": len(p) - positive, "benjamini_hochberg": len(p) / max(positive, 1)}
        level = alpha / max(tests.get(correction, len(p)), 1)
        threshold[varies] = -stdtrit(freedom[varies], level / 2.0)
    notes = []
    if not varies.all():
        spread = "in their differences" if paired else "within the conditions"
        notes.append(f"{(~varies).sum()} of {len(p)} have no variance {spread}: t = 0, p = 1")
    if not paired and correction != "max_t" and fewest < FEW_ITEMS_WELCH:
        notes.append(
            f"a condition has {fewest} items: Welch's smallest p-values are approximate, and with "
            f"hundreds of tests false positives can be twice as frequent as {alpha:g}"
        )
    effect_size[~varies] = 0.0
    return UnitTuning(
        t, p, p_adjusted, significant, effect_size, threshold, test, correction, float(alpha),
        notes=tuple(notes),
    )  # fmt: skip


def _moments(samples: Sequence[Array]) -> tuple[Array, ...]:
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


def _quotient(numerators: Array, denominators: Array) -> Array:
    """Quotients, and 0 where the denominator is 0."""
    zeros = np.zeros(len(numerators))
    return np.divide(numerators, denominators, out=zeros, where=denominators > 0)
