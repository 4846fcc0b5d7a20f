"""Style and drawing helpers that all figures share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from numpy.typing import NDArray

STYLE = Path(__file__).with_name("palinka.mplstyle")

# Okabe & Ito (2008): distinct with any color vision. First and second condition, then others.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MUTED = "#9A9A9A"
# Signed values: white is zero.
DIVERGING = "RdBu_r"
# More points than this would cover each other; a color's depth then shows their number.
MAX_POINTS = 3000


@contextmanager
def style() -> Iterator[None]:
    """Apply palinka's style within the block; restore matplotlib's settings after it."""
    with mpl.rc_context(fname=STYLE):
        yield


def new_figure(width: float = 6.0, height: float = 4.0, **layout: Any) -> tuple[Figure, Any]:
    """Create a figure outside pyplot's global state, and its axes.

    Args:
        width: In inches.
        height: In inches.
        **layout: Arguments of `Figure.subplots`, such as `nrows` and `ncols`.

    Returns:
        The figure and what `Figure.subplots` returned.
    """
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(**layout)


def plain_text(figure: Figure) -> None:
    """Show every `$` in a figure's texts as a `$`, not as the start of a formula.

    The numbers along logarithmic axes, which are formulas, do not exist before the figure is
    drawn, and stay as they are.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if "$" in text.get_text():
            text.set_parse_math(False)


def captioned(figures: dict[str, Figure], captions: Mapping[str, str]) -> dict[str, Figure]:
    """Give each figure its caption, and show the `$` in its names as they are.

    Findings, TensorBoard and the atlas show the caption beside the figure. It is the figure's
    label, as of any artist of matplotlib: `figure.get_label()`.

    Args:
        figures: Figures by name; the same dictionary is returned.
        captions: What each shows and how to read it, by the same name; there may be more.

    Raises:
        KeyError: If a figure has no caption.
    """
    for name, figure in figures.items():
        figure.set_label(captions[name])
        plain_text(figure)
    return figures


def cycled(index: int) -> str:
    """Color of a series by its index; colors repeat after the last."""
    return COLORS[index % len(COLORS)]


def shades(color: str) -> LinearSegmentedColormap:
    """A color map from a light tint of a color, still visible on white, to its dark shade."""
    pure = np.array(to_rgb(color))
    return LinearSegmentedColormap.from_list(color, [0.35 * pure + 0.65, pure, 0.4 * pure])


def mark_zero(axes: Axes) -> None:
    """Draw a thin line at zero, where values are signed."""
    axes.axhline(0.0, color=MUTED, linewidth=0.8, zorder=0)


def legend_above(axes: Axes, columns: int = 1) -> None:
    """Put the legend beside the title, where it covers no data."""
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, borderaxespad=0.0,
        columnspacing=1.0, handletextpad=0.3,
    )  # fmt: skip


def draw_points(
    axes: Axes,
    x: NDArray[Any],
    y: NDArray[Any],
    color: str = COLORS[0],
    label: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """Draw few points one by one, and the density of more than `MAX_POINTS`.

    Args:
        axes: Axes to draw on.
        x: `(units,)`.
        y: `(units,)`.
        color: Color of the points, or of the densest cells.
        label: Legend entry.
        log_x: Use a logarithmic x axis.
        log_y: Use a logarithmic y axis.
    """
    scales: dict[str, Any] = {"xscale": "log" if log_x else "linear"}
    scales["yscale"] = "log" if log_y else "linear"
    if len(x) > MAX_POINTS:
        axes.hexbin(
            x, y, gridsize=(100, 50), bins="log", mincnt=1, cmap=shades(color), linewidths=0.1,
            rasterized=True, **scales,
        )  # fmt: skip
        if label:
            axes.plot([], [], "o", color=color, label=label)
    else:
        axes.set(**scales)
        axes.plot(x, y, "o", ms=3, mew=0, alpha=0.7, color=color, label=label, rasterized=True)


def draw_sorted(axes: Axes, y: NDArray[Any], color: str = COLORS[0]) -> None:
    """Draw the values in descending order against their share of all, in per cent."""
    ranks = 100.0 * (np.arange(len(y)) + 0.5) / max(1, len(y))
    axes.plot(ranks, np.sort(y)[::-1], color=color)
    axes.set_xlim(0, 100)


def draw_highlighted(axes: Axes, numbers: NDArray[Any], label: str, color: str = COLORS[1]) -> None:
    """Mark units that have no place on a logarithmic y axis along its lower edge.

    Args:
        axes: Axes whose x axis is the units' number.
        numbers: Of the units, `(n,)`; none draws nothing.
        label: Legend entry, to which their count is added.
        color: Color of the marks.
    """
    if len(numbers) == 0:
        return
    axes.plot(
        numbers, np.full(len(numbers), 0.03), "|", ms=7, mew=0.6, alpha=0.6, color=color,
        transform=axes.get_xaxis_transform(), rasterized=True, label=f"{label} ({len(numbers):,})",
    )  # fmt: skip
    axes.margins(y=0.12)
    legend_above(axes)


def ranked_panels(count: int, units: str, ylabel: str, ranked: str) -> tuple[Figure, Axes, Axes]:
    """Two panels of one value per unit: by the unit's number, and in descending order.

    Args:
        count: Number of units.
        units: Plural name of the units.
        ylabel: Name of the value.
        ranked: Plural name of the units that are ranked, such as "alive latents".
    """
    figure, (by_number, by_rank) = new_figure(8.0, 3.6, ncols=2, sharey=True, width_ratios=(2.2, 1))
    by_number.set(xlabel=f"number of the {units[:-1]}", ylabel=ylabel, xlim=(-0.5, count - 0.5))
    by_rank.set(xlabel=f"share of the {ranked} (%)", title="in descending order")
    return figure, by_number, by_rank


def block_means(image: NDArray[Any], largest: int = 512) -> NDArray[Any]:
    """Shrink a matrix by averaging equal blocks, so that it is drawn at its true colors.

    Args:
        image: `(rows, columns)`.
        largest: Maximum length of either side of the result.

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
    """Label of a color bar, with a remark where `block_means` has shrunk the matrix."""
    return label if image.shape == whole.shape else f"{label}, mean of neighbors"


def color_limit(values: NDArray[Any], quantile: float = 0.995) -> float:
    """A quantile of |values|, positive: the largest may saturate, so that the others are seen."""
    sizes = np.abs(values)
    return float(np.quantile(sizes, quantile)) or float(sizes.max()) or 1.0


def draw_activations(
    axes: Axes, image: NDArray[Any], shape: tuple[int, ...], limit: float, signed: bool
) -> AxesImage:
    """Draw rows by units.

    Args:
        axes: Axes to draw on.
        image: The activations, shrunk by `block_means`.
        shape: Of the whole matrix, `(rows, units)`: the axes' extent.
        limit: Largest magnitude that has a color of its own.
        signed: Use a diverging color map.
    """
    return axes.imshow(
        image,
        aspect="auto",
        extent=(-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5),
        cmap=DIVERGING if signed else "magma_r",
        vmin=-limit if signed else 0.0,
        vmax=limit,
    )
