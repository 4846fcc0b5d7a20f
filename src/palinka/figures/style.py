"""The look that all figures share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
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
