"""The data of two conditions and their covariances as images."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from palinka.figures.style import DIVERGING, HUES, block_means, color_label, new_figure

Array = NDArray[np.float64]
# The largest entries may saturate, so that the others are seen: the covariances' diagonal does.
_DATA_QUANTILE, _COVARIANCE_QUANTILE = 0.995, 0.99
_SIDE = 512


def draw_data(both: tuple[Array, Array], names: tuple[str, str], units: str) -> Figure:
    """All items by all columns, the first condition above the second.

    Args:
        both: `(items, d)` each.
        names: Of the conditions.
        units: What the columns are.
    """
    x = np.concatenate(both)
    image = block_means(x)
    limit = _limit(image, _DATA_QUANTILE)
    signed = bool((x < 0).any())
    figure, axes = new_figure(8.0, 4.4)
    drawn = axes.imshow(
        image, aspect="auto", extent=(-0.5, x.shape[1] - 0.5, len(x) - 0.5, -0.5),
        cmap=DIVERGING if signed else "magma_r", vmin=-limit if signed else 0.0, vmax=limit,
    )  # fmt: skip
    edge = len(both[0]) - 0.5
    axes.axhline(edge, color="black", linewidth=1)
    centers = [(edge - 0.5) / 2, (edge + len(x) - 0.5) / 2]
    axes.set_yticks(centers, names, rotation=90, va="center", parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=f"number of the {units[:-1]}", ylabel=f"items ({len(x)})")
    axes.set_title("Activations by item")
    label = color_label("activation", image, x)
    figure.colorbar(drawn, label=label, extend="both" if signed else "max")
    return figure


def draw_covariances(
    both: tuple[Array, Array], components: Array, names: tuple[str, str], units: str
) -> Figure:
    """The covariances of both conditions and their difference, before and after the PCA.

    Many columns are shown by the exact mean of every block of the covariance, which is the
    covariance of the blocks' means: no matrix of all columns by all columns is formed.

    Args:
        both: `(items, d)` each.
        components: `(d, r)`.
        names: Of the conditions.
        units: What the columns are.
    """
    figure, panels = new_figure(9.6, 6.0, nrows=2, ncols=3)
    rows = (
        ([_blocks(x) for x in both], components.shape[0], f"number of the {units[:-1]}"),
        ([_blocks(x @ components) for x in both], components.shape[1], "principal component"),
    )
    titles = (names[0], names[1], f"{names[0]} - {names[1]}")
    for row, (data, size, label) in enumerate(rows):
        first, second = (np.cov(x, rowvar=False).reshape(x.shape[1], -1) for x in data)
        limit = _limit(np.concatenate((first, second)), _COVARIANCE_QUANTILE)
        what = "covariance (means of blocks)" if size > _SIDE else "covariance"
        start = row - 0.5  # units count from zero, components from one
        for axes, image, title in zip(
            panels[row], (first, second, first - second), titles, strict=True
        ):
            drawn = axes.imshow(
                image, extent=(start, start + size, start + size, start), cmap=DIVERGING,
                vmin=-limit, vmax=limit,
            )  # fmt: skip
            axes.set_title(title, color=HUES[6], parse_math=False)
            axes.set_xlabel(label)
        panels[row, 0].set_ylabel(label)
        figure.colorbar(drawn, ax=panels[row], label=what, extend="both", shrink=0.8)
    return figure


def _blocks(x: Array) -> Array:
    """Means over blocks of neighboring columns; items are left as they are."""
    parts = [block_means(x[start : start + _SIDE], _SIDE) for start in range(0, len(x), _SIDE)]
    return np.concatenate(parts)


def _limit(image: Array, quantile: float) -> float:
    values = np.abs(image)
    return float(np.quantile(values, quantile)) or float(values.max()) or 1.0
