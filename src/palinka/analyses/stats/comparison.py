"""Intervals of a metric over seeds and items, and comparisons with verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import chdtri, nctdtr, ndtri, stdtrit

from palinka.analyses.result import Result
from palinka.errors import InputError, counted

ALPHA, POWER = 0.05, 0.8
# With two, a t interval of the seeds' mean is ± 8.98 standard deviations.
MINIMUM_SEEDS = 3
SMALLEST_P = 1e-100  # the square of its quantile is still a float
Array = NDArray[np.float64]
Verdict = Literal["higher", "lower", "equal", "undecided", "no interval"]


@dataclass(frozen=True)
class Sample:
    """A metric of one recipe: a number per seed, and what each item contributes to it.

    The variance of a number is the sum of the squares of its contributions, of the same items for
    all samples. They are None where there is nothing to resample, and NaN where the items are too
    few, and then there is no interval either.
    """

    name: str  # of the recipe, or of the dictionary
    values: Array  # (seeds,)
    influence: Array | None = None  # contributions, (seeds, items)
    freedom: float = np.inf  # degrees of freedom of the variance
    seeds: tuple[int | None, ...] = (None,)  # by which samples are paired; None if not known
    unit: str = "items"  # their plural
    count: int = 0  # of items


class Variance(NamedTuple):
    """Squared standard error from one source, with its degrees of freedom."""

    variance: float
    freedom: float


@dataclass(frozen=True)
class Estimate:
    """A number with its errors from seeds and items, of which there may be none.

    The squared half-width of its interval is the sum of theirs, `Σ t²(freedom) variance`.
    """

    value: float
    errors: Mapping[str, Variance]  # by what varies, such as `seeds` and `documents`
    n: Mapping[str, int]  # number of each

    def half_width(self, alpha: float = ALPHA) -> float:
        """Half the width of the interval of coverage `1 - alpha`; NaN without errors."""
        squares = (variance * _t(freedom, alpha) ** 2 for variance, freedom in self.errors.values())
        return float(np.sqrt(sum(squares))) if self.errors else np.nan

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Bounds of the interval of coverage `1 - alpha`."""
        half = self.half_width(alpha)
        return self.value - half, self.value + half

    def p_value(self) -> float:
        """Smallest `alpha` whose interval leaves out 0; NaN without errors, or if all are 0."""
        size = abs(self.value)
        # Seeds that agree to the digit, such as in numbers of dead latents, prove nothing.
        if np.isnan(size) or not self.half_width() > 0.0:
            return np.nan
        if size == 0.0:
            return 1.0
        if self.half_width(SMALLEST_P) <= size:
            return 0.0

        def excess(log_alpha: float) -> float:
            return self.half_width(np.exp(log_alpha)) / size - 1.0

        return float(np.exp(brentq(excess, np.log(SMALLEST_P), 0.0, xtol=1e-12)))

    def detectable(self, alpha: float = ALPHA, power: float = POWER) -> float:
        """Difference from 0 that is found with this power; squares of the sources add up."""
        if np.isnan(self.half_width()):
            return np.nan
        squares = (v * _noncentrality(f, alpha, power) ** 2 for v, f in self.errors.values())
        return float(np.sqrt(sum(squares)))


def estimate(sample: Sample) -> Estimate:
    """Mean over the seeds with its errors, from seeds (two or more) and from items."""
    errors, n, seeds = {}, {}, len(sample.values)
    if seeds > 1:
        errors["seeds"] = Variance(float(np.var(sample.values, ddof=1)) / seeds, seeds - 1.0)
        n["seeds"] = seeds
    if sample.influence is not None:
        variance = float(np.square(np.mean(sample.influence, axis=0)).sum())
        errors[sample.unit] = Variance(variance, sample.freedom)
        n[sample.unit] = sample.count
    return Estimate(float(np.mean(sample.values)), errors, n)


def difference(a: Sample, b: Sample) -> Estimate:
    """Difference of two samples, paired by item and, with two common seeds or more, by seed.

    Without common seeds the errors of both add up, with Welch's degrees of freedom; a sample of
    one seed then has none of its own.
    """
    common = [seed for seed in a.seeds if seed is not None and seed in b.seeds]
    if paired := len(common) > 1:
        a, b = _of_seeds(a, common), _of_seeds(b, common)
    values = a.values - b.values if paired else np.array([a.values.mean() - b.values.mean()])
    influence = None
    if a.influence is not None and b.influence is not None:
        influence = (a.influence.mean(axis=0) - b.influence.mean(axis=0))[None]
    freedom = min(a.freedom, b.freedom)
    found = estimate(replace(a, values=values, influence=influence, freedom=freedom))
    several = [sample.values for sample in (a, b) if len(sample.values) > 1]
    if paired or not several:
        return found
    squares = np.array([np.var(values, ddof=1) / len(values) for values in several])
    freedoms = np.array([len(values) - 1.0 for values in several])
    welch = squares.sum() ** 2 / np.sum(squares**2 / freedoms) if squares.any() else freedoms.sum()
    errors = {"seeds": Variance(float(squares.sum()), float(welch)), **found.errors}
    return Estimate(found.value, errors, {"seeds": min(map(len, several)), **found.n})


def _of_seeds(sample: Sample, seeds: Sequence[int]) -> Sample:
    rows = [sample.seeds.index(seed) for seed in seeds]
    influence = None if sample.influence is None else sample.influence[rows]
    return replace(sample, values=sample.values[rows], influence=influence)


@dataclass(frozen=True)
class Comparison(Result):
    """A difference of two recipes or dictionaries, judged."""

    a: str
    b: str
    difference: float  # first less second
    low: float  # of its 95 % interval; NaN without one
    high: float
    simultaneous_low: float  # of the interval that holds for all comparisons together
    simultaneous_high: float
    p: float  # smallest level whose interval leaves out 0
    p_holm: float  # corrected for the number of comparisons
    detectable: float  # difference that is found 4 times in 5 after that correction
    n: Mapping[str, int]  # of seeds and of items
    verdict: Verdict  # first is … than second; `undecided` is not `equal`
    sentence: str
    remark: str  # a control that is not beaten, or single seeds


def compare(
    pairs: Sequence[tuple[Sample, Sample]],
    margin: float = 0.0,
    weak: Mapping[str, str] = MappingProxyType({}),
    largest: float = np.inf,
) -> tuple[Comparison, ...]:
    """Compare pairs of samples of one metric, with verdicts after Holm over all of them.

    An interval within the `margin`, below which differences do not matter, is `equal`. `weak` has
    by name of a sample the control that it does not beat, such as `the random model`. No difference
    exceeds `largest`, such as 1 of shares.

    Source:
        Holm (1979).

    Example:
        >>> import numpy as np
        >>> from palinka.analyses.stats.comparison import Sample, compare
        >>> a = Sample("wide", np.array([0.71, 0.72, 0.74]), seeds=(0, 1, 2))
        >>> b = Sample("narrow", np.array([0.60, 0.62, 0.61]), seeds=(0, 1, 2))
        >>> compare([(a, b)])[0].sentence
        'wide is higher than narrow by 0.113 (0.075 to 0.151; 3 seeds)'
    """
    found = [difference(a, b) for a, b in pairs]
    p = np.array([one.p_value() for one in found])
    tested = ~np.isnan(p)
    m, holm = max(1, int(tested.sum())), p.copy()
    holm[tested] = adjusted_p_values(p[tested], "holm")
    comparisons = []
    for (a, b), one, own, corrected in zip(pairs, found, p.tolist(), holm.tolist(), strict=True):
        bounds = np.array([*one.interval(), *one.interval(ALPHA / m), one.detectable(ALPHA / m)])
        low, high, lowest, highest, least = np.where(np.isnan(own), np.nan, bounds).tolist()
        verdict: Verdict = "no interval" if np.isnan(own) else "undecided"
        if max(abs(lowest), abs(highest)) < margin:
            verdict = "equal"
        elif corrected <= ALPHA:
            verdict = "higher" if one.value > 0 else "lower"
        beaten = [f"{x.name} is no better than {weak[x.name]}." for x in (a, b) if x.name in weak]
        words = _in_words(a.name, b.name, one, verdict, margin, m, largest)
        comparisons.append(Comparison(
            a.name, b.name, one.value, low, high, lowest, highest, own, corrected, least,
            one.n, verdict, words, " ".join([*beaten, *_scope(a, b)]),
        ))  # fmt: skip
    return tuple(comparisons)


def _scope(a: Sample, b: Sample) -> list[str]:
    single = [sample.name for sample in (a, b) if len(sample.values) == 1]
    if len(single) == 2:
        return ["One seed each: this compares two checkpoints, not two recipes."]
    return [f"One seed of {name}: this compares a recipe with a checkpoint." for name in single]


def _in_words(
    a: str, b: str, one: Estimate, verdict: Verdict, margin: float, m: int, largest: float
) -> str:
    numbers = one.value, *one.interval(), one.detectable(ALPHA / m)
    if verdict == "lower":
        numbers = -numbers[0], -numbers[2], -numbers[1], numbers[3]
    value, low, high, least = (format_number(x, one.half_width()) for x in numbers)
    size = [counted(count, unit) for unit, count in one.n.items()]
    if verdict == "equal":
        return f"{a} and {b} are equal within {margin:g}."
    if verdict == "no interval":
        return f"{a} and {b} differ by {value}, without an interval."
    if verdict == "undecided":
        tests = f" after correction for {m} comparisons" if one.p_value() <= ALPHA else ""
        found = f"a difference of {least}" if numbers[3] <= largest else "no difference"
        return (
            f"{a} and {b} cannot be told apart at {size[0]}{tests}: {value} ({low} to {high}); "
            f"{found} would have been found 4 times in 5."
        )
    return f"{a} is {verdict} than {b} by {value} ({low} to {high}; {', '.join(size)})"


def format_number(value: float, half: float) -> str:
    """A number with as many decimals as show two digits of the half-width of its interval.

    Four digits without an interval, and beside one that is narrower than they show; a dash for NaN.
    """
    if np.isnan(value):
        return "\N{EN DASH}"
    if not np.isfinite(half) or half <= 1e-4 * abs(value):
        text = f"{value:.4g}"
    else:
        text = f"{value:.{max(0, 1 - int(np.floor(np.log10(half))))}f}"
    if not float(text):
        text = text.removeprefix("-")
    return text.replace("-", "\N{MINUS SIGN}")


def adjusted_p_values(p: Array, correction: str) -> Array:
    """P-values adjusted after Bonferroni, Holm (1979) or Benjamini & Hochberg (1995)."""
    if correction == "benjamini_hochberg":
        from scipy.stats import false_discovery_control  # slow to import

        return np.asarray(false_discovery_control(p))
    if correction == "bonferroni":
        return np.minimum(1.0, len(p) * p)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


def seed_spread(groups: Sequence[ArrayLike]) -> tuple[float, float, float]:
    """Standard deviation over seeds, pooled over recipes, `(seeds,)` each; its 95 % interval."""
    values = [np.asarray(group, dtype=np.float64) for group in groups]
    freedom = sum(len(one) - 1 for one in values)
    if freedom < 1:
        raise InputError("one seed of each recipe; a standard deviation needs two of one recipe")
    squares = float(sum(np.var(one) * len(one) for one in values))
    tails = chdtri(freedom, np.array([ALPHA / 2, 1 - ALPHA / 2]))
    low, high = np.sqrt(squares / tails).tolist()
    return float(np.sqrt(squares / freedom)), low, high


def minimal_detectable_difference(
    sd: float, n: int, paired: bool = True, alpha: float = ALPHA, power: float = POWER
) -> float:
    """Smallest difference that a two-sided t test of `n` seeds of each recipe finds.

    `sd` is that over seeds: of the difference if the recipes have the same seeds, `paired`, else of
    one recipe. `power` is the probability of finding the difference.

    Example:
        >>> from palinka.analyses import minimal_detectable_difference
        >>> round(minimal_detectable_difference(sd=1.0, n=5), 2)
        1.68
    """
    if n < 2:
        raise InputError(f"n is {n}; a standard deviation over seeds needs at least 2")
    if not 0 < alpha < power < 1:
        given = f"alpha is {alpha:g} and power {power:g}"
        raise InputError(f"{given}; expected 0 < alpha < power < 1")
    freedom, samples = (n - 1, 1) if paired else (2 * n - 2, 2)
    return float(sd * np.sqrt(samples / n) * _noncentrality(freedom, alpha, power))


def seeds_needed(
    sd: float, difference: float, paired: bool = True, alpha: float = ALPHA, power: float = POWER
) -> int:
    """Smallest number of seeds that finds a difference; see `minimal_detectable_difference`."""
    if not difference > 0:
        raise InputError(f"difference is {difference:g}; give one above 0")
    if minimal_detectable_difference(sd, 2, paired, alpha, power) <= difference:
        return 2
    large = (ndtri(1 - alpha / 2) + ndtri(power)) ** 2 * (sd / difference) ** 2
    n = max(3, int(large * (1 if paired else 2)))  # of known sd, which is too few
    while minimal_detectable_difference(sd, n, paired, alpha, power) > difference:
        n += 1
    return n


def _t(freedom: float, alpha: float) -> float:
    """Two-sided quantile of Student's t, exact also for tiny `alpha`."""
    return float(-(ndtri(alpha / 2) if np.isinf(freedom) else stdtrit(freedom, alpha / 2)))


def _noncentrality(freedom: float, alpha: float, power: float) -> float:
    """Noncentrality at which a two-sided t test has this power."""
    bound = _t(freedom, alpha)
    if np.isinf(freedom):
        return bound + float(ndtri(power))
    if bound > 1e3:  # the normal part no longer counts, and SciPy's distribution may be NaN
        return bound * float(np.sqrt(chdtri(freedom, 1 - power) / freedom))

    def excess(shift: float) -> float:
        other = np.nan_to_num(nctdtr(freedom, shift, -bound))  # NaN where it vanishes
        return float(1.0 - nctdtr(freedom, shift, bound) + other) - power

    upper = bound + 1.0
    while excess(upper) < 0:
        upper *= 1.5
    return float(brentq(excess, 0.0, upper))
