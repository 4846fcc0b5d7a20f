"""Effects of interventions on prompts: tests and intervals over clusters, and recovery."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.result import Array, Mask, Result, Table, as_float64, p_text
from palinka.analyses.stats.permutation import (
    CHUNK_ELEMENTS,
    RELATIVE_TOLERANCE,
    chunks,
    permutation_p_values,
)
from palinka.analyses.stats.similarity import draws_in_chunks
from palinka.errors import InputError

# One array, or one for each component: `(layers, positions, prompts)` or other cells.
Cells = ArrayLike | Mapping[str, ArrayLike]
# By component the names of the axes of its cells, in order, and the label of each entry.
Axes = Mapping[str, Mapping[str, Sequence[Any]]]
Direction = Literal["denoise", "noise"]
ClustersBy = Literal["template", "prompt"]
Only = Literal["all", "solved"] | None
Recovery = Literal["ratio_of_sums", "mean_of_ratios"]

# Sign flips of fewer have no p below 2^(1 - 5) = 0.0625.
MIN_CLUSTERS = 6
# Percentile intervals of fewer are too narrow.
FEW_CLUSTERS = 10
# Axes whose entries have a strongest cell each, and the number of cells in a headline.
EACH, MAX_NAMED = ("component", "value", "receiver"), 6
# Outcomes whose differences are not on one scale.
NO_RECOVERY = ("rank", "probability")
# Outcomes that are 0 in the clean run, and never below.
FROM_CLEAN = ("kl", "hidden_change")
# Share of the outcomes' sizes up to which a gap is rounding.
NO_GAP = 1e-6


class Intervals(TypedDict, total=False):
    """Options of intervals over clusters of prompts or texts that are alike."""

    level: float
    """Coverage of the intervals, default 0.95; corrected p-values up to `1 - level` are
    significant."""
    resamples: int
    """Number of resamples of the bootstrap, default 1000; 0 for no intervals."""
    seed: int
    """Seed of the flips and the resamples, default 0."""


class ClusterOptions(Intervals, total=False):
    """Options of tests and intervals over clusters."""

    permutations: int
    """Number of sign flips, default 1000; all patterns of signs where there are no more; 0 for no
    p-values."""


class ControlledArguments(Intervals, total=False):
    """Data and options that analyses of effects beside those of controls share."""

    clusters: ArrayLike | None
    """Template of each prompt, `(prompts,)`; default one of its own."""
    outcome: str
    """Name of the outcome; `"rank"` and `"probability"` have no recovery."""


class PairedArguments(ControlledArguments, total=False):
    """Data and options that analyses of effects on paired prompts share."""

    axes: Axes | None
    """By component the names of the axes of its cells and the labels of the entries, such as
    `{"resid": {"layer": range(12), "position": ["s1", "end"]}}`."""
    solved: ArrayLike | None
    """Mask of the prompts with a positive clean and a negative corrupted logit difference,
    `(prompts,)`; default from the outcomes, if they are logit differences."""
    clusters_by: ClustersBy
    """`"template"`, the default, or `"prompt"` to take prompts as independent."""
    only: Only
    """`"solved"` leaves out prompts without a positive clean and a negative corrupted logit
    difference; `"all"` also analyzes prompts fewer than half of which are solved."""
    recovery: Recovery
    """`"ratio_of_sums"`, the default, or `"mean_of_ratios"` of single prompts, those without a gap
    left out."""


class EffectArguments(PairedArguments, ClusterOptions, total=False):
    """Data and options of effects of many cells, with tests."""

    possible: Cells | None
    """Mask of the cells that can have an effect, in the shape of the cells. Others, such as
    positions before the first differing token, are exactly 0 with p = 1."""


@dataclass(frozen=True)
class Effects(Result):
    """Effects of interventions on one outcome; the cells of all components follow each other."""

    verb: ClassVar[str] = "change"
    share: ClassVar[str] = "recovery {:z.2f}"
    effects: Array  # outcome with the intervention minus without, by prompt, `(cells, prompts)`
    effect: Array  # mean of the effects over clusters, `(cells,)`
    effect_low: Array  # bounds of its bootstrap interval over clusters
    effect_high: Array
    # Part of the gap that is there with the intervention: 0 as corrupted, 1 as clean
    recovery: Array
    recovery_low: Array  # bounds of its bootstrap interval
    recovery_high: Array
    p: Array  # two-sided p-values by sign flips of whole clusters, each cell by itself
    p_corrected: Array  # the same, corrected for all cells of all components by the maximum
    significant: Mask  # true where the corrected p is at most `1 - level`
    gap: float  # mean over clusters of the outcome of the clean minus that of the corrupted prompts
    gap_low: float  # bounds of its bootstrap interval
    gap_high: float
    clean: float  # mean outcome of the clean prompts
    corrupted: float  # mean outcome of the corrupted prompts
    prompts: int
    clusters: int  # number of clusters, the unit of inference
    # Share of all given prompts with a positive outcome if clean, and a negative one if corrupted,
    # in logit differences; NaN where these are not known
    prompts_solved: float
    level: float  # coverage of the intervals
    outcome: str
    # `"denoise"` where corrupted runs are changed, `"noise"` where clean ones are
    direction: Direction
    axes: Axes  # by component the axes of its cells, in order, with the label of each entry
    cluster: tuple[Any, ...]  # label of each prompt's cluster

    @property
    def tested(self) -> bool:
        """True if any cell has a p-value."""
        return not np.isnan(self.p_corrected).all()

    def maps(self, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Values of the cells, `(cells, …)`, as an array for each component, in its own shape."""
        shapes = [tuple(map(len, axes.values())) for axes in self.axes.values()]
        parts = np.split(values, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
        reshaped = (p.reshape(s + values.shape[1:]) for p, s in zip(parts, shapes, strict=True))
        return dict(zip(self.axes, reshaped, strict=True))

    def cells(self) -> list[dict[str, Any]]:
        """The component and the labels of each cell."""
        return [
            {"component": name} | dict(zip(axes, labels, strict=True))
            for name, axes in self.axes.items()
            for labels in product(*axes.values())
        ]

    def strongest(self) -> list[int]:
        """The cell of largest |effect| of each component, and of each entry of `EACH`."""
        found: dict[str, int] = {}
        for index, cell in enumerate(self.cells()):
            best = found.setdefault(_path(cell), index)
            if abs(self.effect[index]) > abs(self.effect[best]):
                found[_path(cell)] = index
        return list(found.values())

    def named(self) -> list[int]:
        """The cells that the headline names."""
        return sorted(self.strongest(), key=lambda cell: -abs(self.effect[cell]))[:MAX_NAMED]

    def label(self, cell: dict[str, Any]) -> str:
        """A cell of `cells` in words."""
        words = (x if isinstance(x, str) else f"{axis} {x}" for axis, x in cell.items())
        return " ".join(words).strip()

    def unit(self) -> str:
        """Plural of what the clusters are, if their labels tell it."""
        others = "prompts" if self.clusters == self.prompts else "clusters"
        return "templates" if isinstance(self.cluster[0], str) else others

    def scalars(self) -> dict[str, float]:
        """The strongest cells, then numbers of the whole; none are NaN."""
        numbers: dict[str, Any] = {}
        cells = self.cells()
        for at in self.strongest():
            found = {x: label for x, label in cells[at].items() if not isinstance(label, str)}
            found |= {"effect": self.effect[at], "recovery": self.recovery[at]}
            found["p_value"], path = self.p_corrected[at], _path(cells[at])
            numbers |= {f"{path}/strongest_{what}".lstrip("/"): x for what, x in found.items()}
        numbers |= {"gap": self.gap, "prompts_solved": self.prompts_solved}
        numbers |= {"cells_significant": self.significant.sum(), self.unit(): self.clusters}
        numbers["prompts"] = self.prompts
        return {name: float(value) for name, value in numbers.items() if not np.isnan(value)}

    def headline(self, units: str, conditions: Sequence[str]) -> str:
        """Number of cells with an effect, and the strongest cells."""
        cells, found = self.cells(), []
        for cell in self.named():
            share = f", {self.share.format(r)}" if np.isfinite(r := self.recovery[cell]) else ""
            p = p_text(self.p_corrected[cell], alpha=round(1.0 - self.level, 12))
            found.append(f"{self.label(cells[cell])} {self.effect[cell]:+.3g}{share}, {p}")
        counted = f"{self.significant.sum()} of {len(cells)} cells {self.verb} the {self.outcome}"
        counted += f" (sign flips of {self.clusters} {self.unit()}, corrected for all cells)"
        if not self.tested:
            counted = f"{len(cells)} cells, no test of the {self.outcome}"
        return f"{counted}; strongest: {'; '.join(found)}".replace("_", " ")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array in the shape of its component's cells, by `component/name` or `name`."""
        return {
            f"{component}/{name}" if component else name: values
            for name, cells in super().arrays().items()
            for component, values in self.maps(cells).items()
        }

    def tables(self) -> dict[str, Table]:
        """The table `cells`, with a row for each, in the order of the arrays."""
        arrays = {n: v for n, v in super().arrays().items() if v.shape == self.effect.shape}
        return {"cells": as_table(self.cells()) | arrays}


def _path(cell: Mapping[str, Any]) -> str:
    return "/".join(str(cell[axis]) for axis in EACH if cell.get(axis, "") != "")


def as_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows as columns, empty where a row has no such entry."""
    columns = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, "") for row in rows] for name in columns}


def cluster_sums(values: Array, cluster: NDArray[Any]) -> Array:
    """Sums of values `(…, prompts)` over clusters, `(…, clusters)`, in the order of labels."""
    _, index = np.unique(cluster, return_inverse=True)
    return np.asarray(values @ np.eye(index.max() + 1)[index])


def cluster_means(values: Array, cluster: NDArray[Any]) -> Array:
    """Means over the prompts of each cluster, `(…, clusters)`, of values `(…, prompts)`."""
    return cluster_sums(values, cluster) / cluster_sums(np.ones(len(cluster)), cluster)


def sign_flip_test(effects: Array, permutations: int, seed: int) -> tuple[Array, Array]:
    """P-values of effects `(cells, clusters)` under random signs of whole clusters.

    First each cell by itself, then corrected for all cells by the largest statistic of any. The
    statistic is `(Σe)² / (n Σe²)` over the `n` clusters, which grows with |t|. Where at most
    `permutations` patterns of signs differ, `2^(n-1)`, all of them are enumerated: the test is
    exact where effects are symmetric about 0. An effect of 0 in all clusters has p = 1.

    Source:
        Fisher (1935); Westfall & Young (1993); Nichols & Holmes (2002).
    """
    cells, n = effects.shape
    squares = n * np.square(effects).sum(axis=1)

    def statistic(sums: Array) -> Array:
        zeros = np.zeros(sums.shape)
        found = np.divide(np.square(sums), squares, out=zeros, where=squares > 0)
        return np.where(found > 1e-24, found, 0.0)  # less is the rounding of a sum

    exact = 2 ** (n - 1) <= permutations
    draws = 2 ** (n - 1) - 1 if exact else permutations  # the observed signs come besides
    observed, random = statistic(effects.sum(axis=1)), np.random.default_rng(seed)
    at_least, largest = np.ones(cells), np.empty(draws)
    for some in draws_in_chunks(draws, max(cells, n), "Flipping signs"):
        flipped = random.random((some.stop - some.start, n)) < 0.5
        if exact:  # the bits of a number; the last cluster keeps its sign
            numbers = np.arange(some.start + 1, some.stop + 1)[:, None]
            flipped = (numbers >> np.arange(n) & 1).astype(bool)
        null = statistic(np.where(flipped, -1.0, 1.0) @ effects.T)
        at_least += (null >= observed * (1.0 - RELATIVE_TOLERANCE)).sum(axis=0)
        largest[some] = null.max(axis=1)
    return at_least / (draws + 1), permutation_p_values(observed, largest)


def bootstrap_ratios(
    above: Array, below: Array, level: float, resamples: int, seed: int
) -> tuple[Array, Array]:
    """Percentile intervals over clusters of `Σ above / Σ below`: the bounds, `(cells,)` each.

    Numerators, `(cells, clusters)`, and denominators, `(clusters,)`, are resampled together, the
    same for all cells. NaN without resamples, or for one cluster.

    Source:
        Efron (1979); Field & Welsh (2007) for whole clusters.
    """
    n, bounds = len(below), np.full((2, len(above)), np.nan)
    if n > 1 and resamples:
        random = np.random.default_rng(seed)
        counts = random.multinomial(n, np.full(n, 1.0 / n), size=resamples).astype(np.float64)
        total = (counts @ below)[:, None]
        tails = (1.0 - level) / 2.0, (1.0 + level) / 2.0
        with np.errstate(divide="ignore", invalid="ignore"):
            for some in chunks(len(above), CHUNK_ELEMENTS // resamples):
                bounds[:, some] = np.quantile(counts @ above[some].T / total, tails, axis=0)
    return bounds[0], bounds[1]


class Estimates(NamedTuple):
    """Means over clusters with intervals and p-values, in the shape of the values."""

    mean: Array
    low: Array
    high: Array
    p: Array
    p_corrected: Array


def over_clusters(
    values: Array, cluster: NDArray[Any], *, level: float = 0.95, permutations: int = 1000,
    resamples: int = 1000, seed: int = 0,
) -> Estimates:  # fmt: skip
    """Average values `(…, prompts)` over clusters, with bootstrap intervals and a test of 0.

    Corrected p-values are corrected for all values together; all are NaN without permutations.
    """
    means = cluster_means(values.reshape(-1, values.shape[-1]), cluster)
    low, high = bootstrap_ratios(means, np.ones(means.shape[1]), level, resamples, seed)
    p = p_corrected = np.full(len(means), np.nan)
    if permutations:
        p, p_corrected = sign_flip_test(means, permutations, seed)
    found = means.mean(axis=1), low, high, p, p_corrected
    return Estimates(*(each.reshape(values.shape[:-1]) for each in found))


def measure_effects(
    patched: Cells, clean: ArrayLike, corrupted: ArrayLike | None,
    clusters: ArrayLike | None = None, possible: Cells | None = None, axes: Axes | None = None, *,
    direction: Direction = "noise", outcome: str = "logit_difference",
    solved: ArrayLike | None = None, level: float = 0.95, permutations: int = 1000,
    resamples: int = 1000, seed: int = 0, clusters_by: ClustersBy = "template", only: Only = None,
    recovery: Recovery = "ratio_of_sums", names: Sequence[str] = ("layer", "position", "head"),
    units: str = "templates",
) -> dict[str, Any]:  # fmt: skip
    """Compute the fields of `Effects`; arguments are those of `EffectArguments`.

    `names` are those of the axes of an array without `axes`, and `units` are what clusters are. An
    `InputError` if arrays do not fit, the model solves fewer than half of the prompts, or there are
    fewer than 6 clusters, whose sign flips have no p below 0.05.
    """
    cells, flags = by_component(patched), by_component(possible)
    before = np.asarray(clean, np.float64)
    n = len(before)
    after = np.full(n, np.nan) if corrupted is None else np.asarray(corrupted, np.float64)
    shapes = {name: np.shape(values) for name, values in cells.items()}
    for name, shape in (("corrupted", after.shape), *shapes.items()):
        if shape[-1:] != (n,):
            given = f"{name or 'patched'} has the shape {shape}"
            raise InputError(f"{given}; expected {n} prompts along the last axis")
    matrices = [as_float64(np.reshape(v, (-1, n)), k or "patched") for k, v in cells.items()]
    effects = np.concatenate(matrices) - (after if direction == "denoise" else before)
    tested = [np.ravel(flags.get(name, np.ones(shape[:-1]))) for name, shape in shapes.items()]
    effects[~np.concatenate(tested).astype(bool)] = 0.0
    by_template = clusters is not None and clusters_by == "template"
    cluster, unit = (clusters, units) if by_template else (np.arange(n), "prompts")
    cluster, notes = np.asarray(cluster), []
    kept = solved_prompts(solved, clean, corrupted, outcome)
    share = np.nan if kept is None else float(kept.mean())
    if only is None and share < 0.5:
        what = f"the model answers {share:.0%} of the pairs (clean above 0, corrupted below)"
        raise InputError(f"{what}; set only: all, or only: solved to leave the others out")
    if only == "solved":
        if kept is None:
            needed = f"the logit difference of clean and corrupted prompts, not {outcome}"
            raise InputError(f"only: solved needs {needed}; set only: all")
        before, after, cluster = before[kept], after[kept], cluster[kept]
        effects = effects[:, kept]
        notes.append(
            f"only the {kept.sum()} of {n} prompts that the model solves, which were selected by "
            "the outcome: intervals and p-values are about such prompts"
        )
    count = len(np.unique(cluster))
    if count < (MIN_CLUSTERS if permutations else 1):
        prompts = len(cluster) if unit == "templates" else 0
        advice = ", or set clusters_by: prompt" * (prompts >= MIN_CLUSTERS)
        needed = f"a test over {unit} needs at least {MIN_CLUSTERS}: add {unit}{advice}"
        raise InputError(f"{count} {unit}; {needed}; or set permutations: 0 for no test")
    if count < FEW_CLUSTERS:
        notes.append(f"{count} {unit}: percentile intervals of fewer than 10 are too narrow")
    least = 1.0 / min(2.0 ** (count - 1), permutations + 1)
    if permutations and least > (alpha := round(1.0 - level, 12)):
        what = f"p is at least {least:.3g}: no cell can be significant at {alpha:g}"
        notes.append(f"{what}; add {unit} or permutations")
    if permutations and outcome in FROM_CLEAN and direction == "noise":
        notes.append("a divergence from the clean run is never negative: no test of 0")
        permutations = 0
    interval: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed}
    found = over_clusters(effects, cluster, permutations=permutations, **interval)
    gap = over_clusters(before - after, cluster, permutations=0, **interval)
    recovered = np.full((3, len(effects)), np.nan)
    if corrupted is not None and outcome not in NO_RECOVERY:
        above, below = _recovery_terms(effects, before, after, direction, recovery)
        if abs(below.sum()) <= NO_GAP * np.abs([before, after]).sum():
            notes.append("clean and corrupted prompts have the same outcome: there is no recovery")
        else:
            recovered[0] = above.sum(axis=1) / below.sum()
            sums = cluster_sums(above, cluster), cluster_sums(below, cluster)
            recovered[1:] = bootstrap_ratios(*sums, **interval)
        if gap.low <= 0.0 <= gap.high:
            there = f"gap {gap.mean:.3g}, interval {gap.low:.3g} to {gap.high:.3g}"
            what = f"the model does not tell clean from corrupted here ({there})"
            notes.append(f"{what}; recovery means nothing, effects stand")
    default = {k: dict(zip(names, map(range, s[:-1]), strict=False)) for k, s in shapes.items()}
    means = cluster_means(np.stack([before, after]), cluster).mean(axis=1)
    return {
        "effects": effects, "effect": found.mean, "effect_low": found.low,
        "effect_high": found.high, "recovery": recovered[0], "recovery_low": recovered[1],
        "recovery_high": recovered[2], "p": found.p, "p_corrected": found.p_corrected,
        "significant": found.p_corrected <= round(1.0 - level, 12), "gap": float(gap.mean),
        "gap_low": float(gap.low), "gap_high": float(gap.high), "clean": float(means[0]),
        "corrupted": float(means[1]), "prompts": len(before), "clusters": count,
        "prompts_solved": share, "level": level, "outcome": outcome, "direction": direction,
        "axes": {name: (axes or default).get(name, default[name]) for name in shapes},
        "cluster": tuple(cluster.tolist()), "notes": tuple(notes),
    }  # fmt: skip


def solved_prompts(
    solved: ArrayLike | None, clean: ArrayLike, corrupted: ArrayLike | None, outcome: str
) -> Mask | None:
    """Mask of the prompts that the model solves, as given or from their logit differences."""
    if solved is None and (corrupted is None or outcome != "logit_difference"):
        return None
    own = (np.asarray(clean) > 0) & (np.asarray(corrupted) < 0) if solved is None else solved
    return np.atleast_1d(np.asarray(own, bool))


def kept_prompts(clean: ArrayLike, corrupted: ArrayLike | None, options: PairedArguments) -> Any:
    """Index of the prompts that count under `only`."""
    if options.get("only") != "solved":
        return slice(None)
    outcome = options.get("outcome", "logit_difference")
    return solved_prompts(options.get("solved"), clean, corrupted, outcome)


def by_component(cells: Cells | None) -> Mapping[str, ArrayLike]:
    """Cells by component: the empty name for one array, and nothing for `None`."""
    if cells is None or isinstance(cells, Mapping):
        return cells or {}
    return {"": cells}


def _recovery_terms(
    effects: Array, clean: Array, corrupted: Array, direction: Direction, recovery: Recovery
) -> tuple[Array, Array]:
    """Numerators `(cells, prompts)` and denominators `(prompts,)` of the recovery."""
    gaps = clean - corrupted
    above = effects + gaps if direction == "noise" else effects
    if recovery == "ratio_of_sums":
        return above, gaps
    usable = np.abs(gaps) > NO_GAP * (np.abs(clean) + np.abs(corrupted))
    ratios = np.divide(above, gaps, out=np.zeros(above.shape), where=usable)
    return ratios, usable.astype(np.float64)
