"""Style and drawing helpers that all figures share."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial, wraps
from itertools import islice
from pathlib import Path
from textwrap import fill
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from palinka.analyses.stats.permutation import critical_value

# Okabe & Ito (2008): distinct with any color vision. First and second condition, then others.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Markers of conditions and groups, one fewer than colors, and the same as text.
MARKERS, GLYPHS = "o^sDvP", "●▲■◆▼✚"
# Lines of series that lie on each other.
LINES = ("-", "--", ":", "-.")
MUTED = "#9A9A9A"
# Signed values: white is zero.
DIVERGING = "RdBu_r"
# Inches: 9 cm, the width of a column on paper, in which figures can be read at their own size.
WIDTH = 3.54
# Number of units that a figure names at either end, beside points and along an image.
NAMED, ENDS = 3, 12
# Maximum number of items that are all named beside an image, and of characters of a name.
MAX_LABELS, MAX_NAME = 30, 20
# More points than this would cover each other; a color's depth then shows their number.
MAX_POINTS = 3000

P = ParamSpec("P")
Figures = dict[str, Figure]
Draw = Callable[P, Figures]
# Mask of some units, `(units,)`, their color and legend entry.
Group = tuple[NDArray[np.bool_], str, str | None]


def style() -> AbstractContextManager[None]:
    """Apply palinka's style within a block; restore matplotlib's settings after it."""
    return mpl.rc_context(fname=Path(__file__).with_name("palinka.mplstyle"))


def new_figure(width: float = WIDTH, height: float = 2.8, **layout: Any) -> tuple[Figure, Any]:
    """Create a figure outside pyplot's global state, and its axes; sizes are in inches.

    `layout` are arguments of `Figure.subplots`, such as `nrows`, whose result comes second.
    """
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(**layout)


def small_multiples(
    count: int, columns: int, size: tuple[float, float], margins: tuple[float, float], **layout: Any
) -> tuple[Figure, list[Axes]]:
    """Create a figure of `count` panels of one size, `columns` in a row; sizes are in inches."""
    rows = -(-count // columns)
    width, height = margins[0] + size[0] * columns, margins[1] + size[1] * rows
    figure, grid = new_figure(width, height, nrows=rows, ncols=columns, squeeze=False, **layout)
    for spare in grid.flat[count:]:
        spare.remove()
    return figure, list(grid.flat[:count])


def plain_text(figure: Figure) -> None:
    """Show every `$` in a figure's texts as a `$`; numbers along the axes stay formulas."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        # Once a figure was drawn, its numbers are texts too, as matplotlib's formatters write them.
        if "$" in (written := text.get_text()) and r"\mathdefault" not in written:
            text.set_parse_math(False)


def captioned(**captions: str) -> Callable[[Draw[P]], Draw[P]]:
    """Let a function draw in palinka's style, and give its figures their captions.

    Findings, TensorBoard and the atlas show the caption, the figure's label, beside the figure.
    There may be captions of further figures; a figure without one raises a `KeyError`.
    """

    def decorate(function: Draw[P]) -> Draw[P]:
        @wraps(function)
        def draw(*args: P.args, **kwargs: P.kwargs) -> Figures:
            with style():
                figures = function(*args, **kwargs)
                for name, figure in figures.items():
                    figure.set_label(captions[name.rpartition("/")[2]])
                    plain_text(figure)
                    if waiting := vars(figure).pop("unnamed", ()):
                        figure.draw_without_rendering()  # only now all axes have their sizes
                        for name_points_of in waiting:
                            name_points_of()
            return figures

        return draw

    return decorate


def cycled(index: int) -> str:
    """Color of a series by its index; colors repeat after the last."""
    return COLORS[index % len(COLORS)]


def look(index: int) -> dict[str, Any]:
    """Color and marker of a series by its index; the pairs repeat after 42."""
    return {"color": cycled(index), "marker": MARKERS[index % len(MARKERS)]}


def mark(axes: Axes, *, x: float | None = None, y: float | None = None) -> None:
    """Draw a thin line at a value of reference, such as zero."""
    if x is not None:
        axes.axvline(x, color=MUTED, linewidth=0.8, zorder=0)
    if y is not None:
        axes.axhline(y, color=MUTED, linewidth=0.8, zorder=0)


def mark_diagonal(axes: Axes) -> None:
    """Draw the diagonal, and thin lines at zero."""
    axes.axline((0, 0), slope=1.0, color="black", lw=0.7)
    mark(axes, x=0.0, y=0.0)


def legend_above(axes: Axes, columns: int = 1) -> None:
    """Put the legend, if there are entries, beside the title, where it covers no data."""
    if axes.get_legend_handles_labels()[0]:
        spacing = {"borderaxespad": 0.0, "columnspacing": 1.0, "handletextpad": 0.3}
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, **spacing)


def draw_points(
    axes: Axes, x: NDArray[Any], y: NDArray[Any], color: str = COLORS[0], label: str | None = None,
    marker: str = "o", **scales: Any,
) -> None:  # fmt: skip
    """Draw few points one by one, the density of many; `scales` are `xscale` and `yscale`."""
    if len(x) == 0:
        return
    if len(x) <= MAX_POINTS:
        axes.set(**scales)
        axes.plot(x, y, marker, ms=3, mew=0, alpha=0.7, color=color, label=label, rasterized=True)
        return
    # From a light tint of the color, still visible on white, to its dark shade.
    pure = np.array(to_rgb(color))
    shades = LinearSegmentedColormap.from_list(color, [0.35 * pure + 0.65, pure, 0.4 * pure])
    cells: dict[str, Any] = {"gridsize": (100, 50), "bins": "log", "mincnt": 1, "cmap": shades}
    axes.hexbin(x, y, linewidths=0.1, rasterized=True, **cells, **scales)
    if label:
        axes.plot([], [], "o", color=color, label=label)


def draw_null(axes: Axes, null: NDArray[Any], observed: float, label: str) -> None:
    """Draw an observed value among those of its null, and the one at which p is 0.05."""
    finite = null[np.isfinite(null)]  # a labeling can leave a condition without variance
    axes.hist(finite, bins=min(40, max(5, len(null) // 10)), color=MUTED, label=label)
    axes.axvline(observed, color=COLORS[1], label="observed")
    if np.isfinite(bound := critical_value(null)):
        axes.axvline(bound, color="black", linestyle=":", label="p = 0.05")


def headline(figure: Figure, text: str) -> None:
    """Say above all panels, from the left, what a figure shows."""
    text = text.replace("p ≤ ", "p\xa0≤\xa0")  # not broken
    text = fill(text, int(17 * figure.get_figwidth())).replace("\xa0", " ")
    figure.suptitle(text, x=0.01, ha="left", parse_math=False)


def plain_log(axis: Axis) -> None:
    """Number a logarithmic axis 0.2, 1 and 50 rather than by powers of ten."""
    low, high = axis.get_view_interval()
    if high < 5 * low:  # with fewer than two such parts in view, ticks would overlap
        axis.set_major_locator(MaxNLocator(3))
    elif high < 1e4 * low:  # with fewer than 9 ticks it would leave decades out, and their parts
        parts = (1, 2, 5) if high < 50 * low else (1, 3)
        axis.set_major_locator(LogLocator(subs=parts, numticks=9))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def name_points(
    axes: Axes, x: NDArray[Any], y: NDArray[Any], chosen: Iterable[int], names: Any = None
) -> None:
    """Write the number or name of chosen points near them, each with a line to its point.

    Of the places around a point, the one is taken that covers the fewest points, and no name, once
    `captioned` has the complete figure.
    """
    waiting = vars(axes.figure).setdefault("unnamed", [])
    waiting.append(partial(_name_points, axes, x, y, list(dict.fromkeys(chosen)), names))


def _name_points(
    axes: Axes, x: NDArray[Any], y: NDArray[Any], chosen: list[int], names: Any
) -> None:
    scale = 72 / axes.figure.dpi
    points = axes.transData.transform(np.stack([x, y], axis=1)) * scale
    px, py = points.T.copy()
    low, high = axes.bbox.get_points() * scale
    angles, gaps = np.meshgrid(np.arange(0, 2 * np.pi, np.pi / 8), (7, 13, 20, 28, 37))
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(-1, 2)
    gap = gaps.reshape(-1, 1)
    taken: list[tuple[NDArray[Any], NDArray[Any]]] = []
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.5, "parse_math": False}
    look["path_effects"] = [withStroke(linewidth=2, foreground="white")]
    look["arrowprops"] = {"arrowstyle": "-", "lw": 0.5, "shrinkA": 0, "shrinkB": 1.5}
    for i in chosen:
        text = str(i if names is None else names[i])
        half = np.array([2.1 * len(text), 3.5])  # of its size in points
        offsets = directions * (gap + half)
        centers = points[i] + offsets
        cost = 0.2 * gap[:, 0] + 100.0 * ((centers - half < low) | (centers + half > high)).any(1)
        wide, tall = half + 2.5  # a place at a time: there may be a million points
        cost += [((abs(px - at) < wide) & (abs(py - up) < tall)).sum() for at, up in centers]
        for middle, size in taken:
            cost += 100.0 * (np.abs(middle - centers) < half + size + 1.0).all(axis=1)
            # Nor should the line to the point, of which this is the middle, run through a name.
            cost += 20.0 * (np.abs(middle - points[i] - offsets / 2) < size + 1.0).all(axis=1)
        best = int(cost.argmin())
        taken.append((centers[best], half))
        axes.annotate(text, (x[i], y[i]), offsets[best], textcoords="offset points", **look)


def shortened(name: str, most: int) -> str:
    """A name of at most `most` characters, around the target in brackets if there is one."""
    start = max(0, min(len(name) - most, name.find("[") + 3 - most // 2))
    before, after = "…" if start else "", "…" if start + most < len(name) else ""
    return f"{before}{name[start + len(before) : start + most - len(after)]}{after}"


def extremes(values: NDArray[Any], count: int = NAMED) -> list[int]:
    """Numbers of the largest values and, if any are negative, of the smallest."""
    order: list[int] = np.argsort(-values, kind="stable").tolist()
    return order[:count] + (order[: -count - 1 : -1] if values.min() < 0 else [])


def linear_range(
    values: NDArray[Any], percent: float, factor: float
) -> tuple[dict[str, float], str]:
    """Arguments of a signed logarithmic scale and a remark, if a linear one is not enough.

    It is linear up to a power of ten above a percentile of magnitudes, if the largest is more than
    `factor` times that.
    """
    sizes = np.abs(values[values != 0])
    small, large = np.percentile(sizes, [percent, 100]) if len(sizes) else (1.0, 0.0)
    if large <= factor * small:
        return {}, ""
    threshold = float(10.0 ** np.ceil(np.log10(small)))
    return {"linthresh": threshold}, f",\nlogarithmic beyond ±{threshold:g}"


def draw_means(
    means: Mapping[str, NDArray[Any]], groups: Sequence[Group], named: Iterable[int], units: str
) -> tuple[Figure, Axes]:
    """Draw mean activations, `(units,)`, by condition, and of the second against the first.

    The last axes are those of both. Where a few units are huge, axes are partly logarithmic.
    """
    values, numbers = list(means.values()), np.arange(len(groups[0][0]))
    ratios = [*[1.0] * len(means), 2.6]
    layout: dict[str, Any] = {"nrows": len(ratios), "height_ratios": ratios}
    figure, (*by_number, against) = new_figure(WIDTH, 2.8 + 1.3 * len(means), **layout)
    scaling, beyond = linear_range(np.concatenate(values), 90.0, 10.0)
    for axes, name, each in zip(by_number, means, values, strict=True):
        draw_points(axes, numbers, each)
        name_points(axes, numbers, each, extremes(np.abs(each), 2))
        mark(axes, y=0.0)
        axes.set(title=name, ylabel="mean activation", xlim=(-0.5, len(numbers) - 0.5))
        axes.tick_params(labelbottom=False)
        axes.sharey(by_number[-1])
    by_number[-1].tick_params(labelbottom=True)
    by_number[-1].set_xlabel(number_of(units))
    for (chosen, color, _), marker in zip(groups, "oD", strict=False):
        draw_points(against, values[0][chosen], values[1][chosen], color, marker=marker)
    against.axline((0, 0), (1, 1), color="black", lw=0.7)
    name_points(against, values[0], values[1], named)
    if scaling:
        against.set_xscale("symlog", linscale=2, **scaling)
        for axes in (*by_number, against):
            axes.set_yscale("symlog", linscale=2, **scaling)
    xlabel, ylabel, *_ = (f"mean activation, {name}{beyond}" for name in means)
    against.set(xlabel=xlabel, ylabel=ylabel)
    return figure, against


def draw_by_unit(
    values: NDArray[Any], groups: Sequence[Group], units: str, ylabel: str, ranked: str,
    yscale: str = "log",
) -> tuple[Figure, Axes, Axes]:  # fmt: skip
    """Draw one value per unit, `(units,)`, by the unit's number, and in descending order.

    `units` and `ranked`, those in one of the groups, are plural names such as "alive latents". The
    extreme units are named.
    """
    figure, (by_number, by_rank) = new_figure(ncols=2, sharey=True, width_ratios=(2.2, 1))
    by_number.set(xlabel=number_of(units), ylabel=ylabel, xlim=(-0.5, len(values) - 0.5))
    by_rank.set_xlabel(f"{ranked},\nsorted (%)")
    for mask, color, label in groups:
        draw_points(by_number, np.flatnonzero(mask), values[mask], color, label, yscale=yscale)
    ordered = np.sort(values[np.any([mask for mask, *_ in groups], axis=0)])[::-1]
    if len(ordered):
        by_rank.plot(100.0 * (np.arange(len(ordered)) + 0.5) / len(ordered), ordered)
        by_rank.set_xlim(0, 100)
        if yscale == "log":
            plain_log(by_number.yaxis)
        name_points(by_number, np.arange(len(values)), values, extremes(values))
    return figure, by_number, by_rank


def number_of(units: str) -> str:
    """Label of an axis of units, whose plural name is given."""
    return f"number of the {units[:-1]}"


def draw_highlighted(axes: Axes, numbers: NDArray[Any], label: str, color: str = COLORS[1]) -> None:
    """Mark units, if any, that have no place on a logarithmic y axis along its lower edge."""
    if len(numbers):
        axes.plot(
            numbers, np.full(len(numbers), 0.03), "|", ms=7, mew=0.6, alpha=0.6, color=color,
            transform=axes.get_xaxis_transform(), rasterized=True,
            label=f"{label} ({len(numbers):,})",
        )  # fmt: skip
        axes.margins(y=0.12)


def color_scale(
    values: NDArray[Any], percentiles: tuple[float, float] = (0, 100)
) -> dict[str, Any]:
    """Color map and limits of an image, whose zero is neutral if it is among the values."""
    low, high = np.percentile(values, percentiles)
    if low < 0 < high:
        high = max(-low, high)
        return {"cmap": DIVERGING, "vmin": -high, "vmax": high}
    return {"cmap": "Reds" if low == 0 else "viridis", "vmin": low, "vmax": high}


def site_numbers(sites: Sequence[str]) -> tuple[list[int], str]:
    """A number for each site, and what it is: its layer, if the names differ in nothing else."""
    parts = [re.fullmatch(r"(\D*)(\d+)(\D*)", site) for site in sites]
    matches = [match for match in parts if match]
    if len(matches) == len(sites) and len({(m[1], m[3]) for m in matches}) == 1:
        return [int(match[2]) for match in matches], f"layer ({matches[0][1]}i{matches[0][3]})"
    return list(range(1, len(sites) + 1)), "site, in the order given"


def color_limit(values: NDArray[Any], quantile: float = 0.995) -> float:
    """A quantile of |values|, positive: the largest may saturate, so that the others are seen."""
    sizes = np.abs(values)
    return float(np.quantile(sizes, quantile)) or float(sizes.max()) or 1.0


def outline(axes: Axes, mask: NDArray[np.bool_]) -> None:
    """Draw a line around the true cells of an image, `(rows, columns)`, and a dot in each."""
    inside = np.pad(mask, 1)
    above = np.argwhere(inside[1:, 1:-1] != inside[:-1, 1:-1]) - 0.5
    beside = np.argwhere(inside[1:-1, 1:] != inside[1:-1, :-1]) - 0.5
    edges = [((x, y), (x + 1, y)) for y, x in above] + [((x, y), (x, y + 1)) for y, x in beside]
    for width, color in ((2.2, "white"), (1.0, "black")) if edges else ():
        look: dict[str, Any] = {"linewidths": width, "colors": color, "clip_on": False}
        axes.add_collection(LineCollection(edges, capstyle="projecting", **look))
    y, x = np.nonzero(mask)  # a hole in a region and an island look alike by their lines
    axes.plot(x, y, "o", color="black", markersize=2.5, markeredgecolor="white", mew=0.5)


def draw_cells(
    axes: Axes, values: NDArray[Any], limit: float, rows: tuple[str, Sequence[Any]],
    columns: tuple[str, Sequence[Any]],
) -> AxesImage:  # fmt: skip
    """Draw signed values, `(rows, columns)`, up to a limit; the first row is at the bottom.

    `rows` and `columns` are the name and the labels of the axes.
    """
    for axis, (name, labels), most in ((axes.yaxis, rows, 12), (axes.xaxis, columns, 8)):
        words = any(isinstance(label, str) for label in labels) and len(labels) <= MAX_LABELS
        step = 1 if words else -(-len(labels) // most)
        texts = [shortened(str(label), 10) for label in labels[::step]]
        axis.set_ticks(range(0, len(labels), step), texts, parse_math=False)
        axis.set_label_text(name)
    axes.tick_params(axis="x", rotation=90 if sum(map(len, texts)) > 26 else 0)
    colors: dict[str, Any] = {"cmap": DIVERGING, "vmin": -limit, "vmax": limit}
    return axes.imshow(values, aspect="auto", origin="lower", **colors)


def draw_activations(
    matrices: Mapping[str, NDArray[Any]], order: NDArray[Any], units: str, ranked: str,
    items: Sequence[str] | None = None, row: str = "item",
) -> Figure:  # fmt: skip
    """Draw items by units, a panel for each matrix, `(items, units)`, at one scale.

    Shown are the first and the last units of `order`, which `ranked` describes. Signed activations
    are drawn about each unit's mean. `items` are the names of all rows; of many rows, those of the
    most unusual ones are shown.
    """
    shown = order if len(order) <= 2 * ENDS else np.append(order[:ENDS], order[-ENDS:])
    signed = any((matrix < 0).any() for matrix in matrices.values())
    center = np.concatenate(list(matrices.values())).mean(axis=0) if signed else 0.0
    rows = [min(len(matrix), MAX_LABELS) for matrix in matrices.values()]
    heights = [0.35 + 0.085 * max(count, 8) for count in rows]
    layout: dict[str, Any] = {"nrows": len(rows), "squeeze": False, "height_ratios": heights}
    figure, panels = new_figure(WIDTH, 1.2 + sum(heights), sharex=True, **layout)
    limit = color_limit(np.concatenate([(m - center)[:, shown] for m in matrices.values()]))
    colors: dict[str, Any] = {"cmap": DIVERGING if signed else "Reds", "vmax": limit}
    colors |= {"vmin": -limit if signed else 0.0, "aspect": "auto"}
    names = iter(items or ())
    for axes, (title, matrix) in zip(panels[:, 0], matrices.items(), strict=True):
        drawn = axes.imshow((matrix - center)[:, shown], **colors)
        axes.set(title=title, ylabel=f"{row} (of {len(matrix):,})")
        if own := list(islice(names, len(matrix))):
            unusual = np.argsort(-np.abs(matrix - center).sum(axis=1))[:NAMED]
            places = range(len(own)) if len(own) <= MAX_LABELS else sorted(unusual)
            named = [shortened(own[place], MAX_NAME) for place in places]
            axes.set_yticks(places, named, fontsize=6, parse_math=False)
        if len(shown) < len(order):
            axes.axvline(ENDS - 0.5, color="black", linewidth=0.8)
    axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=6)
    axes.set_xlabel(f"{units} of the highest and lowest {ranked}")
    label = "activation - mean of the unit" if signed else "activation"
    bar: dict[str, Any] = {"location": "bottom", "extend": "both" if signed else "max"}
    figure.colorbar(drawn, ax=panels, label=label, aspect=30, pad=0.01, **bar)
    return figure
