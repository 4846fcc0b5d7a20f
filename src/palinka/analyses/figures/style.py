"""Style and helpers of all figures."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

STYLE = Path(__file__).with_name("palinka.mplstyle")

# Okabe & Ito (2008): told apart with any color vision. First and second condition, then others.
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MUTED = "#9A9A9A"
# Signed values: white is zero.
DIVERGING = "RdBu_r"


@contextmanager
def style() -> Iterator[None]:
    """Within it, figures are made in palinka's style; matplotlib's settings come back after."""
    with mpl.rc_context(fname=STYLE):
        yield


def new_figure(width: float = 6.0, height: float = 4.0, **layout: Any) -> tuple[Figure, Any]:
    """A figure that no global state knows, and its axes.

    Args:
        width: In inches.
        height: In inches.
        **layout: What `Figure.subplots` takes, such as `nrows` and `ncols`.

    Returns:
        The figure and what `Figure.subplots` returned.
    """
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(**layout)


def plain_text(figure: Figure) -> None:
    """Let no text of a figure be read as a formula: a `$` in a name is a `$`.

    The numbers along logarithmic axes, which are formulas, do not exist before the figure is
    drawn, and stay as they are.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if "$" in text.get_text():
            text.set_parse_math(False)


def block_means(image: NDArray[Any], largest: int = 512) -> NDArray[Any]:
    """Shrink a matrix by averaging equal blocks, so that it is drawn at its true colors.

    Args:
        image: `(rows, columns)`.
        largest: Neither side of the result is longer.

    Returns:
        A matrix whose every entry is the mean of a block of the given one.
    """
    for axis in (0, 1):
        length = image.shape[axis]
        if length > largest:
            edges = np.linspace(0, length, largest + 1).astype(int)
            sums = np.add.reduceat(image, edges[:-1], axis=axis)
            shape = (-1, 1) if axis == 0 else (1, -1)
            image = sums / np.diff(edges).reshape(shape)
    return image


def color_label(label: str, image: NDArray[Any], whole: NDArray[Any]) -> str:
    """The label of a color bar, which says so where `block_means` has shrunk the matrix."""
    return label if image.shape == whole.shape else f"{label}, mean of neighbors"


def mark_zero(axes: Axes) -> None:
    """A thin line at zero, where values are signed."""
    axes.axhline(0.0, color=MUTED, linewidth=0.8, zorder=0)


def captioned(figures: dict[str, Figure], captions: Mapping[str, str]) -> dict[str, Figure]:
    """Give each figure its caption, which findings, TensorBoard and the atlas show beside it.

    A figure's caption is its label, as of any artist of matplotlib: `figure.get_label()`.

    Args:
        figures: Figures by name.
        captions: What each shows and how to read it, by the same name; there may be more.

    Returns:
        The same figures.

    Raises:
        KeyError: If a figure has no caption.
    """
    for name, figure in figures.items():
        figure.set_label(captions[name])
    return figures


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
