"""Figures of unit tuning."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.figures.style import (
    COLORS,
    MUTED,
    block_means,
    captioned,
    color_label,
    color_limit,
    draw_activations,
    draw_points,
    draw_sorted,
    legend_above,
    mark_zero,
    new_figure,
    ranked_panels,
    style,
)
from palinka.analyses.result import as_float64
from palinka.analyses.unit_tuning import UnitTuning

# More words than this cannot be read beside an image.
MAX_LABELS = 60

_CAPTIONS = {
    "t": (
        "The t statistic of every unit, by its number and in descending order. The sign says which "
        "condition the unit prefers; significant units are in color."
    ),
    "activations": (
        "The activations of every item, one condition in each panel: whether a difference of "
        "means is one of many items, or of few."
    ),
    "mean_activation": (
        "The mean activation of every unit in both conditions, and one against the "
        "other. Significant units lie off the diagonal."
    ),
    "significant": "The share of units at each site that tell the two conditions apart.",
}


def unit_tuning(
    result: UnitTuning,
    *,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    conditions: Sequence[str] = ("a", "b"),
    items: Sequence[str] | None = None,
    units: str = "units",
    **context: Any,
) -> dict[str, Figure]:
    """Draw t by unit, and the activations behind it.

    Args:
        result: Of `analyses.unit_tuning`.
        a: The first condition's activations, `(items, units)`.
        b: The second condition's.
        conditions: Their names.
        items: The words of the first condition, followed by those of the second.
        units: Plural name of the units.
        **context: Ignored.

    Returns:
        `t` and, with `a` and `b`, `activations` and `mean_activation`.
    """
    with style():
        figures = {"t": _t_by_unit(result, conditions, units)}
        if a is not None and b is not None:
            both = as_float64(a, "a"), as_float64(b, "b")
            figures["activations"] = _activations(both, conditions, items, units)
            figures["mean_activation"] = _mean_activation(result, both, conditions, units)
    return captioned(figures, _CAPTIONS)


def overview(
    results: Mapping[str, UnitTuning], units: str = "units", **context: Any
) -> dict[str, Figure]:
    """Draw `significant`, the share of significant units at every site."""
    with style():
        figure, axes = new_figure(6.0, 0.8 + 0.26 * len(results))
        shares = [100.0 * result.significant.mean() for result in results.values()]
        axes.barh(list(results), shares, color=COLORS[0])
        axes.invert_yaxis()
        axes.set_xlabel(f"significant {units} (%)")
    return captioned({"significant": figure}, _CAPTIONS)


def _t_by_unit(result: UnitTuning, conditions: Sequence[str], units: str) -> Figure:
    ylabel = f"t (above 0: prefers {conditions[1]})"
    figure, by_number, by_rank = ranked_panels(result.units, units, ylabel, units)
    for chosen, color, label in (
        (~result.significant, MUTED, "not significant"),
        (result.significant, COLORS[1], "significant"),
    ):
        if chosen.any():
            draw_points(by_number, np.flatnonzero(chosen), result.t[chosen], color, label)
    draw_sorted(by_rank, result.t)
    for axes in (by_number, by_rank):
        mark_zero(axes)
    legend_above(by_number, columns=2)
    by_number.set_title(f"{result.units_significant:,} of {result.units:,} {units} significant")
    return figure


def _activations(
    both: tuple[NDArray[np.float64], NDArray[np.float64]],
    conditions: Sequence[str],
    items: Sequence[str] | None,
    units: str,
) -> Figure:
    images = [block_means(activations) for activations in both]
    limit = color_limit(np.concatenate([image.ravel() for image in images]))
    signed = any((activations < 0).any() for activations in both)
    rows = min(MAX_LABELS, max(len(activations) for activations in both))
    figure, panels = new_figure(9.0, max(3.2, 0.1 * rows + 1.0), ncols=2)
    start = 0
    for axes, image, activations, condition in zip(panels, images, both, conditions, strict=True):
        drawn = draw_activations(axes, image, activations.shape, limit, signed)
        axes.set(title=condition, xlabel=f"number of the {units[:-1]}", ylabel="item")
        if items is not None and len(activations) <= MAX_LABELS:
            words = items[start : start + len(activations)]
            axes.set_yticks(range(len(words)), words, fontsize=5.5, parse_math=False)
            axes.set_ylabel("")
        start += len(activations)
    longer = max(range(2), key=lambda condition: len(both[condition]))
    label = color_label("activation", images[longer], both[longer])
    figure.colorbar(drawn, ax=panels, label=label, extend="both" if signed else "max")
    return figure


def _mean_activation(
    result: UnitTuning,
    both: tuple[NDArray[np.float64], NDArray[np.float64]],
    conditions: Sequence[str],
    units: str,
) -> Figure:
    figure, axes = new_figure(8.6, 3.8, ncols=2, nrows=2, width_ratios=(1.5, 1), squeeze=False)
    means = [activations.mean(axis=0) for activations in both]
    grid = axes[0, 1].get_gridspec()
    axes[0, 1].remove()
    axes[1, 1].remove()
    against = figure.add_subplot(grid[:, 1])
    for number, (panel, mean, condition) in enumerate(
        zip(axes[:, 0], means, conditions, strict=True)
    ):
        draw_points(panel, np.arange(len(mean)), mean, COLORS[2 * number])
        mark_zero(panel)
        panel.set(title=condition, ylabel="mean activation", xlim=(-0.5, len(mean) - 0.5))
    axes[0, 0].sharex(axes[1, 0])
    axes[0, 0].tick_params(labelbottom=False)
    axes[0, 0].sharey(axes[1, 0])
    axes[1, 0].set_xlabel(f"number of the {units[:-1]}")
    for chosen, color in ((~result.significant, MUTED), (result.significant, COLORS[1])):
        if chosen.any():
            draw_points(against, means[0][chosen], means[1][chosen], color)
    low, high = min(map(np.min, means)), max(map(np.max, means))
    against.plot([low, high], [low, high], color="black", lw=0.7)
    against.set(
        xlabel=f"mean activation, {conditions[0]}",
        ylabel=f"mean activation, {conditions[1]}",
        title=f"significant {units} apart",
    )
    return figure
