"""Figures of unit tuning."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from palinka.analyses.figures import style
from palinka.analyses.result import Array, as_float64
from palinka.analyses.unit_tuning import UnitTuning

# More words than this cannot be read beside an image.
MAX_LABELS = 60


@style.captioned(
    t="The t statistic of every unit, by its number and in descending order. The sign says which "
    "condition the unit prefers; significant units are in color.",
    activations="The activations of every item, one condition in each panel: whether a difference "
    "of means is one of many items, or of few.",
    mean_activation="The mean activation of every unit in both conditions, and one against the "
    "other. Significant units lie off the diagonal.",
)
def unit_tuning(
    result: UnitTuning, *, a: ArrayLike | None = None, b: ArrayLike | None = None,
    conditions: Sequence[str] = ("a", "b"), items: Sequence[str] | None = None,
    units: str = "units", **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw t by unit, and the activations behind it.

    `a` and `b` are the activations of both `conditions`, `(items, units)`, and `items` the words
    of the first, followed by those of the second.
    """
    found, ylabel = result.significant, f"t (above 0: prefers {conditions[1]})"
    groups = [(~found, style.MUTED, "not significant"), (found, style.COLORS[1], "significant")]
    figure, *panels = style.draw_by_unit(result.t, groups, units, ylabel, units, "linear")
    for axes in panels:
        style.mark(axes, y=0.0)
    style.legend_above(panels[0], columns=2)
    panels[0].set_title(f"{found.sum():,} of {len(found):,} {units} significant")
    figures = {"t": figure}
    if a is not None and b is not None:
        both = as_float64(a, "a"), as_float64(b, "b")
        figures["activations"] = _activations(both, conditions, items, units)
        figures["mean_activation"] = _mean_activation(both, groups, conditions, units)
    return figures


@style.captioned(significant="The share of units at each site that tell the two conditions apart.")
def overview(
    results: Mapping[str, UnitTuning], units: str = "units", **context: Any
) -> dict[str, Figure]:
    """Draw `significant`, the share of significant units at every site."""
    figure, axes = style.new_figure(6.0, 0.8 + 0.26 * len(results))
    shares = [100.0 * result.significant.mean() for result in results.values()]
    axes.barh(list(results), shares, color=style.COLORS[0])
    axes.invert_yaxis()
    axes.set_xlabel(f"significant {units} (%)")
    return {"significant": figure}


def _activations(
    both: Sequence[Array], conditions: Sequence[str], items: Sequence[str] | None, units: str
) -> Figure:
    rows = min(MAX_LABELS, max(map(len, both)))
    figure, panels = style.new_figure(9.0, max(3.2, 0.1 * rows + 1.0), ncols=2)
    style.draw_activations(panels, both, units)
    starts = (0, len(both[0]))
    for axes, activations, condition, start in zip(panels, both, conditions, starts, strict=True):
        axes.set_title(condition)
        if items is None or len(activations) > MAX_LABELS:
            axes.set_ylabel("item")
        else:
            words = items[start : start + len(activations)]
            axes.set_yticks(range(len(words)), words, fontsize=5.5, parse_math=False)
    return figure


def _mean_activation(
    both: Sequence[Array], groups: Sequence[style.Group], conditions: Sequence[str], units: str
) -> Figure:
    figure = Figure(figsize=(8.6, 3.8))
    axes = figure.subplot_mosaic("ac;bc", width_ratios=(1.5, 1))
    axes["a"].sharex(axes["b"])
    axes["a"].sharey(axes["b"])
    axes["a"].tick_params(labelbottom=False)
    means = [activations.mean(axis=0) for activations in both]
    numbers = np.arange(len(means[0]))
    for number, name in enumerate("ab"):
        style.draw_points(axes[name], numbers, means[number], style.COLORS[2 * number])
        style.mark(axes[name], y=0.0)
        axes[name].set(title=conditions[number], ylabel="mean activation")
        axes[name].set_xlim(-0.5, len(numbers) - 0.5)
    axes["b"].set_xlabel(style.number_of(units))
    for chosen, color, _ in groups:
        style.draw_points(axes["c"], means[0][chosen], means[1][chosen], color)
    ends = [np.min(means), np.max(means)]
    axes["c"].plot(ends, ends, color="black", lw=0.7)
    xlabel, ylabel = (f"mean activation, {condition}" for condition in conditions)
    axes["c"].set(xlabel=xlabel, ylabel=ylabel, title=f"significant {units} apart")
    return figure
