"""Dictionaries to evaluate, and the numbers of an evaluation."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.result import Mask
from palinka.analyses.stats.bootstrap import share_interval
from palinka.analyses.stats.comparison import (
    MINIMUM_SEEDS,
    Sample,
    difference,
    estimate,
    format_number,
)
from palinka.data import Context
from palinka.language_models import LanguageModel
from palinka.language_models.edits import EncodesAndDecodes

Array = NDArray[np.float64]
Key = tuple[str, str, int | None]  # metric, task and k
# Sign of what is better, in metrics that are claims about a dictionary.
BETTER = {"fvu": -1, "cosine": 1, "auc": 1, "accuracy": 1, "stability_share_corrected": 1}
BETTER |= {"auc_given_tasks": 1, "auc_matched": 1, "auc_matched_given_tasks": 1}
BETTER |= {
    "stability_share_0.7_corrected": 1,
    "ce_delta": -1,
    "kl": -1,
    "loss_recovered": 1,
    "loss_recovered_mean": 1,
}
SEEDS_ALONE, OF_TWO = "t over seeds", "latents, given these two dictionaries"
ALL = "all dictionaries"  # taken as one recipe
# Tasks from which they are taken as a sample of tasks in comparisons.
MANY_TASKS = 8
COUNTS = ("dead", "l0", "split_features")
# Metrics from 0 to 1.
SHARES = re.compile(r"auc(_matched)?(_given_tasks)?$|accuracy|absorption_f|precision|recall|f1")


@dataclass(frozen=True)
class Dictionary:
    """A trained autoencoder of raw activations."""

    name: str  # unique in an evaluation
    recipe: str  # name of the settings that it shares with dictionaries of other seeds
    seed: int | None  # of its weights; None where it is not known
    autoencoder: EncodesAndDecodes  # of raw activations, in evaluation mode
    kind: str  # name of its class
    latent_dim: int
    sha256: str  # of its file; empty for one that has none
    decoder: NDArray[np.float32]  # rows, (latents, width)


@dataclass(frozen=True)
class Subject:
    """A language model, one of its sites, text, and the dictionaries of that site."""

    model: LanguageModel
    site: str
    dictionaries: tuple[Dictionary, ...]
    contexts: Callable[[], Iterator[Context]]  # of the validation split, in the order of the text
    skip: int  # tokens at the start of each context that no dictionary is trained on
    bos: bool  # contexts begin with a BOS token
    mean: Array  # of the activations of the validation rows, (width,)
    shuffled: tuple[Dictionary, ...] = ()  # the same recipes on rows with shuffled coordinates

    @property
    def recipes(self) -> dict[str, list[Dictionary]]:
        """The dictionaries by recipe."""
        found = defaultdict[str, list[Dictionary]](list)
        for one in self.dictionaries:
            found[one.recipe].append(one)
        return found


@dataclass(frozen=True)
class Measurement:
    """A metric of one dictionary, and what an interval and a paired comparison need.

    The variance of `value` is the sum of the squares of `influence`, the contributions of the
    units of resampling, which are the same for all dictionaries, so that differences are paired.
    It is None where there is nothing to resample, and NaN where there are too few units.
    """

    metric: str
    of: str  # name of the dictionary
    value: float
    influence: Array | None  # (units,)
    unit: str  # plural, such as `documents`
    count: int  # of units
    freedom: float = np.inf  # degrees of freedom of the variance
    task: str = ""
    k: int | None = None
    method: str = "influence function"  # of the interval; the reason where there is none
    is_compared: bool = True  # another metric says the same where it is not

    def less(self, other: "Measurement", metric: str) -> "Measurement":
        """Difference from another, paired over the units."""
        assert self.influence is not None
        assert other.influence is not None
        influence = self.influence - other.influence
        return replace(self, metric=metric, value=self.value - other.value, influence=influence)


@dataclass(frozen=True)
class Value:
    """A number of a dictionary or a recipe with its interval, as it is written to files."""

    metric: str
    of: str
    value: float
    low: float = np.nan  # of its interval, if any
    high: float = np.nan
    n: Mapping[str, int] = field(default_factory=dict)  # number of each unit
    method: str = ""  # of the interval; `none: …` with the reason where there is none
    task: str = ""
    k: int | None = None
    level: float = 0.95


@dataclass(frozen=True)
class Group:
    """The numbers of one group of metrics."""

    measurements: Sequence[Measurement] = ()  # which become values of recipes and comparisons
    values: Sequence[Value] = ()  # that have intervals of their own kind
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    # By dictionary or recipe the control that it does not beat, such as `the random model`.
    weak: Mapping[str, str] = field(default_factory=dict)
    bands: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # of controls by metric
    # What `core` is to measure again without some latents, with a suffix of the metrics.
    ablations: Sequence[tuple[Dictionary, str, Mask | None]] = ()


ByRecipe = dict[Key, dict[str, list[Measurement]]]


def sample_of(
    measurements: Sequence[Measurement], name: str, seeds: Sequence[int | None] = (None,)
) -> Sample:
    """Measurements of one metric, of the dictionaries of one recipe with these seeds."""
    first, influence = measurements[0], [one.influence for one in measurements]
    return Sample(
        name, np.array([one.value for one in measurements]),
        np.stack([x for x in influence if x is not None]) if first.influence is not None else None,
        min(one.freedom for one in measurements), tuple(seeds), first.unit, first.count,
    )  # fmt: skip


def value_of(measurements: Sequence[Measurement], name: str) -> Value:
    """Value of one dictionary, or of the recipe of several, with its interval."""
    first, found = measurements[0], estimate(sample_of(measurements, name))
    seeds, n = len(measurements), {first.unit: first.count, **found.n}
    low, high = found.interval()
    method = first.method
    if 1 < seeds < MINIMUM_SEEDS:
        both = " and ".join(format_number(one.value, np.nan) for one in measurements)
        low, high, method = np.nan, np.nan, f"none: two seeds, {both}"
    elif seeds > 1 and low == high and first.influence is None:
        low, high, method = np.nan, np.nan, "none: the same for all seeds"
    elif seeds > 1 and low == low:
        method = SEEDS_ALONE if first.influence is None else f"t over seeds and {first.unit}"
    if SHARES.match(first.metric) and low == low:
        _, low, high = vars(share_interval(found.value, found.half_width())).values()
    if first.metric in COUNTS:
        low = max(low, 0.0)
    return Value(first.metric, name, found.value, low, high, n, method, first.task, first.k)


def by_recipe(subject: Subject, groups: Iterable[Group]) -> ByRecipe:
    """Measurements by metric, task and k, and by recipe."""
    recipe = {one.name: one.recipe for one in subject.dictionaries}
    found: ByRecipe = defaultdict(lambda: defaultdict(list))
    for one in (one for group in groups for one in group.measurements):
        found[one.metric, one.task, one.k][recipe[one.of]].append(one)
    return found


def gap_to_control(
    own: Sequence[Measurement], control: Sequence[Measurement], recipe: str, label: str,
    seeds: Mapping[str, int | None],
) -> tuple[Value, Value, Value]:  # fmt: skip
    """Value of a recipe, that of its control, and their difference; paired by known seeds."""
    pair = [sample_of(some, recipe, [seeds.get(m.of) for m in some]) for some in (own, control)]
    found, first = difference(pair[0], pair[1]), own[0]
    (low, high), method = found.interval(), gap_method("paired difference", found.half_width())
    if low == high:
        low, high, method = np.nan, np.nan, "none: no variance"
    n = dict([*found.n.items()][::-1])  # the seeds last, as of values
    gap = Value(
        f"{first.metric}_gap", recipe, found.value, low, high, n, method, first.task, first.k
    )
    return value_of(own, recipe), value_of(control, label), gap


def gap_method(name: str, width: float) -> str:
    """Name of the method of a gap; of none if the width of its interval is NaN."""
    return name if width == width else "none: one of the values has no interval"


def not_beaten(metric: str, gap: Value) -> bool:
    """The interval of a gap to a control holds 0, or is on the side of what is worse."""
    sign = BETTER.get(metric, np.nan)
    return sign == sign and (gap.value == 0 or min(sign * gap.low, sign * gap.high) <= 0)


def spanned(values: Iterable[Value]) -> dict[str, tuple[float, float]]:
    """Smallest and largest of the values and bounds of each metric."""
    ends: dict[str, list[float]] = defaultdict(list)
    for one in values:
        ends[one.metric] += [x for x in (one.low, one.high, one.value) if x == x]
    return {metric: (min(each), max(each)) for metric, each in ends.items() if each}
