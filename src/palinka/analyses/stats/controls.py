"""Effects of interventions beside those of controls that are as strong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from palinka.analyses.result import Array, Result, Table
from palinka.analyses.stats.effects import (
    FEW_CLUSTERS,
    ControlledArguments,
    Intervals,
    bootstrap_ratios,
    cluster_means,
)
from palinka.analyses.stats.permutation import RELATIVE_TOLERANCE, permutation_p_values

Side = Literal["two", "one"]


@dataclass(frozen=True)
class Controlled(Result):
    """Effects of interventions on one outcome, and those of controls."""

    effect: Array  # outcome with the intervention minus without, mean over clusters
    effect_low: Array  # bounds of its bootstrap interval over clusters
    effect_high: Array
    kl: Array  # divergence of the predictions in nats, in the same shape
    p: Array  # two-sided p-values against each control, `(controls, …)`
    control_effect: Array  # effects of the controls
    controls: tuple[str, ...]
    level: float  # coverage of the intervals
    prompts: int
    clusters: int  # number of clusters, which are resampled
    outcome: str

    def table(self, *names: str, **axes: Sequence[Any] | Array) -> Table:
        """Arrays with the given axes, a row for each combination; p-values by control."""
        shape = tuple(map(len, axes.values()))
        places = zip(axes.items(), np.indices(shape), strict=True)
        table: Table = {name: [labels[i] for i in at.ravel()] for (name, labels), at in places}
        for name in names:
            if (values := self.arrays()[name]).ndim == len(shape):
                table[name] = values.ravel()
            else:
                rows = zip(self.controls, values, strict=True)
                table |= {f"{name}_{control}": row.ravel() for control, row in rows}
        return table


def mean_changes(outcomes: Any, clean: ArrayLike, clusters: ArrayLike | None) -> Array:
    """Changes from the clean outcomes, means over prompts of a cluster, `(…, clusters)`."""
    before = np.asarray(clean, np.float64)
    cluster = np.arange(len(before)) if clusters is None else np.asarray(clusters)
    return cluster_means(np.asarray(outcomes, np.float64) - before, cluster)


def controlled_fields(
    changes: Array, clean: ArrayLike, controls: Mapping[str, ArrayLike],
    options: ControlledArguments,
) -> dict[str, Any]:  # fmt: skip
    """Compute the fields of `Controlled` but `kl` and `p` from `mean_changes` and controls."""
    count, others = changes.shape[-1], [*controls.values()]
    low, high = interval(changes, options)
    few = f"{count} clusters: percentile intervals of fewer than {FEW_CLUSTERS} are too narrow"
    return {
        "effect": changes.mean(axis=-1), "effect_low": low, "effect_high": high,
        "control_effect": mean_changes(others, clean, options.get("clusters")).mean(axis=-1),
        "controls": tuple(controls), "level": options.get("level", 0.95), "clusters": count,
        "prompts": np.size(clean), "outcome": options.get("outcome", "logit_difference"),
        "notes": (few,) * (count < FEW_CLUSTERS),
    }  # fmt: skip


def interval(values: Array, options: Intervals) -> tuple[Array, Array]:
    """Bounds of bootstrap intervals of means over clusters, `(…)`, of values `(…, clusters)`."""
    rows = values.reshape(-1, values.shape[-1])
    own = options.get("level", 0.95), options.get("resamples", 1000), options.get("seed", 0)
    ends = bootstrap_ratios(rows, np.ones(values.shape[-1]), *own)
    low, high = (end.reshape(values.shape[:-1]) for end in ends)
    return low, high


def set_p_values(sets: Array, side: Side = "two") -> Array:
    """P-values of the first of several effects, `(…, 1 + draws)`; NaN where it is NaN."""
    strength = -sets if side == "one" else np.abs(sets)
    least = strength[..., :1] - RELATIVE_TOLERANCE * np.abs(strength[..., :1])
    p = (1.0 + (strength[..., 1:] >= least).sum(axis=-1)) / sets.shape[-1]
    return np.where(np.isnan(sets[..., 0]), np.nan, p)


def standardized(sets: Array) -> Array:
    """Effects `(…, 1 + draws)` in standard deviations from the mean of their set."""
    spread = sets.std(axis=-1, keepdims=True)
    z: Array = (sets - sets.mean(axis=-1, keepdims=True)) / np.where(spread, spread, 1.0)
    return z


def corrected_p_values(sets: Array, side: Side = "two") -> Array:
    """P-values of `set_p_values`, corrected for all cells by the largest |z| of a draw.

    Source:
        Westfall & Young (1993).
    """
    z = standardized(sets)
    strength = -z if side == "one" else np.abs(z)
    p, draws = set_p_values(sets, side), strength.reshape(-1, sets.shape[-1])[:, 1:]
    if p.size == 1:
        return p
    return np.maximum(p, permutation_p_values(strength[..., 0], np.nanmax(draws, axis=0)))
