"""Drawing a number for each of very many units."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from numpy.typing import NDArray

from palinka.figures.style import HUES

# More points than this would cover each other; their number is then shown by a color's depth.
MOST_POINTS = 3000


def shades(color: str) -> LinearSegmentedColormap:
    """A color map from a light tint of a color, still seen on white, to its dark shade."""
    hue = np.array(to_rgb(color))
    return LinearSegmentedColormap.from_list(color, [0.35 * hue + 0.65, hue, 0.4 * hue])


def draw_points(
    axes: Axes,
    x: NDArray[Any],
    y: NDArray[Any],
    color: str = HUES[0],
    label: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """Draw points one by one where they are few, and else how many there are at each place.

    Args:
        axes: Where to.
        x: `(units,)`.
        y: `(units,)`.
        color: The points' color, or that of many.
        label: What the legend calls them.
        log_x: Whether the x axis is logarithmic.
        log_y: Whether the y axis is logarithmic.
    """
    scales: dict[str, Any] = {"xscale": "log" if log_x else "linear"}
    scales["yscale"] = "log" if log_y else "linear"
    if len(x) > MOST_POINTS:
        axes.hexbin(
            x, y, gridsize=(100, 50), bins="log", mincnt=1, cmap=shades(color), linewidths=0.1,
            rasterized=True, **scales,
        )  # fmt: skip
        if label:
            axes.plot([], [], "o", color=color, label=label)
    else:
        axes.set(**scales)
        axes.plot(x, y, "o", ms=3, mew=0, alpha=0.7, color=color, label=label, rasterized=True)


def draw_sorted(axes: Axes, y: NDArray[Any], color: str = HUES[0]) -> None:
    """Draw the values in descending order against their share of all, in per cent."""
    ranks = 100.0 * (np.arange(len(y)) + 0.5) / max(1, len(y))
    axes.plot(ranks, np.sort(y)[::-1], color=color)
    axes.set_xlim(0, 100)


def draw_apart(axes: Axes, numbers: NDArray[Any], label: str, color: str = HUES[1]) -> None:
    """Mark units that have no place on a logarithmic axis along its lower edge.

    Args:
        axes: Where to; its x axis is the units' number.
        numbers: Of the units, `(n,)`; none draws nothing.
        label: What they are, for the legend.
        color: The marks' color.
    """
    if len(numbers) == 0:
        return
    axes.plot(
        numbers, np.full(len(numbers), 0.03), "|", ms=7, mew=0.6, alpha=0.6, color=color,
        transform=axes.get_xaxis_transform(), rasterized=True, label=f"{label} ({len(numbers):,})",
    )  # fmt: skip
    axes.margins(y=0.12)
    legend_above(axes)


def legend_above(axes: Axes, columns: int = 1) -> None:
    """Put the legend beside the title, where it covers no data."""
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, borderaxespad=0.0,
        columnspacing=1.0, handletextpad=0.3,
    )  # fmt: skip
