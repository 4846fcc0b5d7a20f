"""Figures of pairwise mutual information."""

import re
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple, TypeVar

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.scale import SymmetricalLogTransform
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.figures.style import (
    COLORS,
    DIVERGING,
    MUTED,
    block_means,
    captioned,
    color_label,
    cycled,
    draw_points,
    mark_zero,
    new_figure,
    style,
)
from palinka.analyses.pairwise_mutual_information import (
    ROUNDING,
    PairwiseMutualInformation,
    correlation_over_pairs,
    of_pairs,
)

INFORMATION = "mutual information (bits)"
COVARIANCE = "covariance (squared activation)"
TOGETHER = "together"
# Pairs of each condition that are drawn in a small panel; r is that of all pairs.
MAX_PANEL_POINTS = 800
MAX_MEAN_SITES = 3
BINS = 60
# Values that differ by more than this factor are drawn on a logarithmic scale.
WIDE = 100.0
# Units this many times larger than nine tenths of the others get a logarithmic part of the axis.
HUGE = 10.0

T = TypeVar("T")
BySite = dict[str, dict[str, T]]


class Pairs(NamedTuple):
    """Both measures over the pairs of one condition, or of all together."""

    information: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @property
    def correlation(self) -> float:
        """Pearson's r of the two; NaN where either is constant."""
        return correlation_over_pairs(self.information, self.covariance)


def by_site_and_condition(values: Mapping[str, T], conditions: Sequence[str] = ()) -> BySite[T]:
    """Group values with keys `site/condition`, or `site`, by site and condition."""
    found: BySite[T] = {}
    for key, value in values.items():
        site, _, condition = key.partition("/")
        found.setdefault(site, {})[condition] = value
    rank = {condition: index for index, condition in enumerate(conditions)}
    return {
        site: dict(sorted(of_site.items(), key=lambda pair: rank.get(pair[0], len(rank))))
        for site, of_site in found.items()
    }


def bin_edges(low: float, high: float) -> NDArray[np.float64]:
    """Edges of equal bins, also where all values are the same but for rounding."""
    if high - low <= ROUNDING * max(abs(low), abs(high)):
        margin = 0.5 * abs(high) or 0.5
        low, high = low - margin, high + margin
    return np.linspace(low, high, BINS + 1)


def scatter_by_site(results: BySite[PairwiseMutualInformation]) -> Figure:
    """Covariance against information: a panel for each site, a color for each condition."""
    columns = min(len(results), max(3, ceil(np.sqrt(1.5 * len(results)))))
    rows = ceil(len(results) / columns)
    figure, panels = new_figure(
        1.0 + 1.75 * columns, 1.2 + 1.6 * rows, nrows=rows, ncols=columns, squeeze=False
    )
    conditions, names = _conditions(results)
    random = np.random.default_rng(0)
    for axes, (site, of_site) in zip(panels.flat, results.items(), strict=False):
        pairs = _pairs(of_site)
        points, colors = [], []
        for condition in of_site:
            x, y = pairs[condition]
            drawn = random.permutation(len(x))[:MAX_PANEL_POINTS]
            points.append(np.stack([x[drawn], y[drawn]]))
            colors += [cycled(conditions.index(condition))] * len(drawn)
        # In random order, so that no condition hides another.
        order = random.permutation(len(colors))
        axes.scatter(
            *np.concatenate(points, axis=1)[:, order],
            s=2.5,
            alpha=0.6,
            linewidths=0,
            color=np.array(colors)[order],
            rasterized=True,
        )
        mark_zero(axes)
        correlations = [measured.correlation for measured in pairs.values()]
        texts = [f"{r:.2f}" if np.isfinite(r) else "none" for r in correlations]
        axes.set_title(f"{site}\nr = {' | '.join(texts)}", fontsize=7)
        axes.tick_params(labelsize=6)
        axes.locator_params(nbins=3)
    for spare in panels.flat[len(results) :]:
        spare.remove()
    figure.supxlabel(INFORMATION, fontsize="medium")
    figure.supylabel(COVARIANCE, fontsize="medium")
    _legend(figure, conditions, f"r = {' | '.join(names)}")
    return figure


def distributions(results: BySite[PairwiseMutualInformation]) -> Figure:
    """Both measures over pairs, a curve for each site in its color."""
    _, names = _conditions(results)
    layout = {"nrows": 2, "ncols": len(names), "sharex": "row", "sharey": "row"}
    figure, panels = new_figure(1.8 + 2.7 * len(names), 5.0, squeeze=False, **layout)
    numbers, label = _numbers(list(results))
    pairs = [_pairs(of_site) for of_site in results.values()]
    measures = [
        {
            number: {condition: both[measure] for condition, both in found.items()}
            for number, found in zip(numbers, pairs, strict=True)
        }
        for measure in (0, 1)
    ]
    drawn = [number for number in numbers if not all(_is_uniform(m[number]) for m in measures)]
    scale = Normalize(min(drawn or numbers), max(drawn or numbers))
    for row, values, name in zip(panels, measures, (INFORMATION, COVARIANCE), strict=True):
        _curves(row, names, values, scale)
        for axes in row:
            axes.set_xlabel(name)
        row[0].set_ylabel("pairs, relative to the peak")
    for axes, condition in zip(panels[0], names, strict=True):
        axes.set_title(condition or "all pairs")
    if len(drawn) > 1:
        figure.colorbar(ScalarMappable(scale, "viridis"), ax=panels, label=label)
    return figure


def _curves(
    panels: NDArray[Any],
    names: Sequence[str],
    values: Mapping[int, Mapping[str, NDArray[np.float64]]],
    scale: Normalize,
) -> None:
    """Draw one measure: a panel for each condition, a curve for each site."""
    uniform = [number for number, found in values.items() if _is_uniform(found)]
    drawn = {number: found for number, found in values.items() if number not in uniform}
    everything = np.concatenate(
        [of_site for found in (drawn or values).values() for of_site in found.values()]
    )
    threshold = log_threshold(everything)
    low, high = np.percentile(everything, [0.1, 99.9])
    if threshold is None:
        edges = bin_edges(low, high)
    else:
        transform = SymmetricalLogTransform(10, threshold, 1.0)
        edges = transform.inverted().transform(
            bin_edges(*transform.transform(np.array([low, high])))
        )
    centers = (edges[1:] + edges[:-1]) / 2
    for axes, name in zip(panels, names, strict=True):
        for number, found in drawn.items():
            if name in found:
                counts, _ = np.histogram(found[name], bins=edges)
                share = counts / max(1, counts.max())
                axes.plot(centers, share, color=colormaps["viridis"](scale(number)), linewidth=1.0)
        if threshold is not None:
            axes.set_xscale("symlog", linthresh=threshold)
        axes.set_ylim(0.0, 1.2 if uniform else 1.05)
        if uniform:
            which = ", ".join(map(str, uniform))
            axes.text(
                0.98, 0.97, f"not drawn, all pairs equal: {which}", transform=axes.transAxes,
                ha="right", va="top", fontsize="x-small", color=MUTED,
            )  # fmt: skip


def _is_uniform(found: Mapping[str, NDArray[np.float64]]) -> bool:
    """True if all pairs of a condition are equal, as those of one token's embeddings are."""
    return any(np.ptp(pairs) <= ROUNDING * np.abs(pairs).max() for pairs in found.values())


def means_by_site(results: BySite[PairwiseMutualInformation]) -> Figure:
    """Means of both measures by site, with the range of the middle half of pairs."""
    conditions, names = _conditions(results)
    figure, panels = new_figure(9.0, 3.6, ncols=2)
    numbers, label = _numbers(list(results))
    pairs = [_pairs(of_site) for of_site in results.values()]
    for axes, measure, name in zip(panels, (0, 1), (INFORMATION, COVARIANCE), strict=True):
        for condition in names:
            values = [found[condition][measure] for found in pairs if condition in found]
            where = [n for n, found in zip(numbers, pairs, strict=True) if condition in found]
            together = condition == TOGETHER
            color = "black" if together else cycled(conditions.index(condition))
            means = [value.mean() for value in values]
            line, width = ("--", 1.0) if together else ("o-", 1.4)
            axes.plot(where, means, line, color=color, linewidth=width, label=condition or "mean")
            if not together:
                lower, upper = np.array([np.percentile(value, [25, 75]) for value in values]).T
                axes.fill_between(where, lower, upper, color=color, alpha=0.18, linewidth=0)
        axes.set_xlabel(label)
        axes.set_ylabel(name)
        axes.xaxis.get_major_locator().set_params(integer=True)
    every = np.concatenate([found.covariance for of_site in pairs for found in of_site.values()])
    threshold = log_threshold(every)
    if threshold is not None:
        panels[1].set_yscale("symlog", linthresh=threshold)
    mark_zero(panels[1])
    panels[0].set_ylim(bottom=min(0.0, panels[0].get_ylim()[0]))
    panels[0].set_title("means over pairs, and the middle half of pairs")
    panels[0].legend()
    return figure


def mean_activations(means: BySite[ArrayLike], units: str) -> Figure:
    """The mean activation of each unit, and one condition against the others.

    `means` are `(units,)`, by site and condition; every site has two conditions or more.
    """
    shown = list(means)
    if len(shown) > MAX_MEAN_SITES:
        shown = [shown[0], shown[len(shown) // 2], shown[-1]]
    columns = max(len(means[site]) for site in shown)
    width, height = 4.2 + 2.8 * (columns - 1), 0.6 + 2.6 * len(shown)
    layout = {"nrows": len(shown), "ncols": columns, "squeeze": False}
    ratios = [1.6, *[1.0] * (columns - 1)]
    figure, panels = new_figure(width, height, width_ratios=ratios, **layout)
    for row, site in zip(panels, shown, strict=True):
        values = {name: np.asarray(mean, np.float64) for name, mean in means[site].items()}
        first, *others = values
        bulk = _bulk(np.concatenate(list(values.values())))
        for index, (name, value) in enumerate(values.items()):
            row[0].plot(
                value, "o", markersize=2.2, alpha=0.7, mew=0, color=cycled(index),
                label=name, rasterized=True,
            )  # fmt: skip
        mark_zero(row[0])
        row[0].set_title(site)
        row[0].set_xlabel(f"number of the {units[:-1]}")
        row[0].set_ylabel("mean activation")
        if bulk is not None:
            row[0].set_yscale("symlog", linthresh=bulk, linscale=2)
        for axes, name in zip(row[1:], others, strict=False):
            draw_points(axes, values[first], values[name], color=COLORS[0])
            both = [min(axes.get_xlim()[0], axes.get_ylim()[0])]
            both.append(max(axes.get_xlim()[1], axes.get_ylim()[1]))
            if bulk is not None:
                both = [1.5 * limit for limit in both]  # a margin that logarithms still show
                axes.set_xscale("symlog", linthresh=bulk, linscale=2)
                axes.set_yscale("symlog", linthresh=bulk, linscale=2)
            axes.plot(both, both, color=MUTED, linewidth=0.8, zorder=0)
            axes.set(xlim=both, ylim=both)
            correlation = correlation_over_pairs(values[first], values[name])
            axes.set_title(f"r = {correlation:.3f}")
            axes.set(xlabel=f"mean activation, {first}", ylabel=f"mean activation, {name}")
        for axes in row[1 + len(others) :]:
            axes.remove()
    _legend(figure, list(means[shown[0]]))
    return figure


def _pairs(of_site: Mapping[str, PairwiseMutualInformation]) -> dict[str, Pairs]:
    """The pairs of each condition; where there are several, also of all together."""
    pairs = {
        condition: Pairs(of_pairs(result.mutual_information), of_pairs(result.covariance))
        for condition, result in of_site.items()
    }
    if len(pairs) > 1:
        found = list(pairs.values())
        pairs[TOGETHER] = Pairs(
            np.concatenate([measured.information for measured in found]),
            np.concatenate([measured.covariance for measured in found]),
        )
    return pairs


def _conditions(results: BySite[Any]) -> tuple[list[str], list[str]]:
    """All conditions, and those with `TOGETHER` where there are several."""
    conditions = list(dict.fromkeys(name for of_site in results.values() for name in of_site))
    return conditions, [*conditions, TOGETHER] if len(conditions) > 1 else conditions


def _numbers(sites: list[str]) -> tuple[list[int], str]:
    """A number for each site: its layer if the names differ in nothing else, or its place."""
    parts = [re.fullmatch(r"(\D*)(\d+)(\D*)", site) for site in sites]
    matches = [match for match in parts if match]
    if len(matches) == len(sites) and len({(m[1], m[3]) for m in matches}) == 1:
        return [int(match[2]) for match in matches], f"layer ({matches[0][1]}i{matches[0][3]})"
    return list(range(1, len(sites) + 1)), "site, in the order given"


def log_threshold(values: NDArray[np.float64]) -> float | None:
    """Linear range of a signed logarithmic scale; None if a linear scale is enough."""
    sizes = np.abs(values[values != 0])
    if len(sizes) == 0:
        return None
    small, large = np.percentile(sizes, [10, 100])
    return float(10.0 ** np.floor(np.log10(small))) if large > WIDE * small else None


def _bulk(values: NDArray[np.float64]) -> float | None:
    """A bound of most magnitudes, if a few huge ones would hide them; None if none is huge."""
    most, largest = np.percentile(np.abs(values), [90, 100])
    if largest <= HUGE * most or most == 0:
        return None
    return float(10.0 ** np.ceil(np.log10(most)))


def _legend(figure: Figure, conditions: Sequence[str], title: str | None = None) -> None:
    """Name the conditions above all panels; a single one without a name needs no legend."""
    if list(conditions) == [""]:
        return
    handles = [
        Line2D([], [], marker="o", linestyle="", color=cycled(index), label=condition)
        for index, condition in enumerate(conditions)
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), title=title)


# Percentiles: rare extremes would take the colors away from all other pairs.
IN_COLOR = (1.0, 99.0)

_CAPTIONS = {
    "matrices": (
        "Mutual information and covariance of every pair of items, and how both are "
        "distributed. The line is the mutual information with the Miller-Madow correction."
    ),
    "comparison": (
        "Each point is a pair of items: its covariance against its mutual information. Pairs "
        "high in information at little covariance depend on each other in no straight line."
    ),
    "comparison_by_site": (
        "Covariance against mutual information of every pair of items, a panel for "
        "each site and a color for each condition."
    ),
    "distributions": (
        "The distributions of mutual information and covariance over pairs, a panel for each "
        "condition and a color for each site."
    ),
    "means_by_site": "Mean mutual information and covariance of pairs from site to site.",
    "mean_activation": (
        "The mean activation of every unit, and of one condition against the other."
    ),
}


def pairwise_mutual_information(
    result: PairwiseMutualInformation, **context: Any
) -> dict[str, Figure]:
    """Draw the measures over the items of one condition at one site.

    Returns:
        `matrices` (mutual information and covariance of every pair, with their histograms) and
        `comparison` (covariance against mutual information).
    """
    with style():
        figures = {"matrices": _matrices(result), "comparison": _comparison(result)}
    return captioned(figures, _CAPTIONS)


def overview(
    results: Mapping[str, PairwiseMutualInformation],
    *,
    conditions: Sequence[str] = (),
    means: Mapping[str, ArrayLike] | None = None,
    units: str = "units",
    **context: Any,
) -> dict[str, Figure]:
    """Draw the measures at all sites, condition by condition and together.

    Args:
        results: By `site/condition`, or by site alone.
        conditions: Order of the conditions; default that of `results`.
        means: The mean activation of each unit over items, `(units,)`, by the same keys.
        units: Plural name of the units.
        **context: Ignored.

    Returns:
        `comparison_by_site` (covariance against mutual information, a panel for each site),
        `distributions` and `means_by_site`; with `means` of two conditions or more also
        `mean_activation` (by unit, and one condition against the other).
    """
    found = by_site_and_condition(results, conditions)
    with style():
        figures = {
            "comparison_by_site": scatter_by_site(found),
            "distributions": distributions(found),
            "means_by_site": means_by_site(found),
        }
        if means is not None:
            activations = by_site_and_condition(means, conditions)
            if all(len(of_site) > 1 for of_site in activations.values()):
                figures["mean_activation"] = mean_activations(activations, units)
    return captioned(figures, _CAPTIONS)


def _matrices(result: PairwiseMutualInformation) -> Figure:
    figure, panels = new_figure(8.4, 6.0, nrows=2, ncols=2, height_ratios=(2.2, 1.0))
    information, covariance = of_pairs(result.mutual_information), of_pairs(result.covariance)
    corrected = of_pairs(result.mutual_information_corrected)
    samples = of_pairs(result.samples)
    _matrix(panels[0, 0], result.mutual_information, INFORMATION)
    _matrix(panels[0, 1], result.covariance, COVARIANCE)
    panels[0, 0].set_title(f"{len(information):,} pairs of {len(result.covariance):,} items")
    kept = sorted({f"{int(samples.min()):,}", f"{int(samples.max()):,}"}, key=len)
    panels[0, 1].set_title(f"{' to '.join(kept)} units kept in each pair")
    below, beside = panels[1]
    both = np.concatenate([information, corrected])
    edges = bin_edges(both.min(), both.max())
    below.hist(information, bins=edges, color=COLORS[0], alpha=0.75, label="plain")
    below.hist(corrected, bins=edges, histtype="step", color=COLORS[1], label="Miller-Madow")
    below.legend()
    below.set_title(f"means {information.mean():.3g} and {corrected.mean():.3g}")
    below.set(xlabel=INFORMATION, ylabel="pairs")
    edges = bin_edges(covariance.min(), covariance.max())
    beside.hist(covariance, bins=edges, color=COLORS[0], alpha=0.75)
    beside.set_title(f"mean {covariance.mean():.3g}, median {np.median(covariance):.3g}")
    beside.set_xlabel(COVARIANCE)
    for axes in (below, beside):
        axes.locator_params(axis="x", nbins=5)
    return figure


def _matrix(axes: Axes, matrix: NDArray[np.float64], label: str) -> None:
    items = len(matrix)
    pairs = of_pairs(matrix)
    low, high = np.percentile(pairs, IN_COLOR)
    signed = low < 0 < high
    if signed:
        high = max(-low, high)
        low = -high
    elif high - low <= ROUNDING * max(abs(low), abs(high)):
        low, high = bin_edges(low, high)[[0, -1]]
    # Both halves are drawn: half a square is harder to read. The diagonal has no pairs.
    whole = matrix + matrix.T
    np.fill_diagonal(whole, np.nan if items <= 512 else pairs.mean())
    shown = block_means(whole)
    image = axes.imshow(
        shown,
        vmin=low,
        vmax=high,
        cmap=DIVERGING if signed else "viridis",
        extent=(0.5, items + 0.5, items + 0.5, 0.5),
        aspect="auto",
    )
    axes.set_box_aspect(1)
    label = color_label(label, shown, whole)
    axes.figure.colorbar(image, ax=axes, label=label, extend="both", shrink=0.9, pad=0.02)
    axes.set(xlabel="item", ylabel="item")
    for side in ("bottom", "left"):
        axes.spines[side].set_visible(False)


def _comparison(result: PairwiseMutualInformation) -> Figure:
    figure, axes = new_figure(5.2, 4.0)
    information, covariance = of_pairs(result.mutual_information), of_pairs(result.covariance)
    draw_points(axes, information, covariance)
    mark_zero(axes)
    if axes.collections:
        figure.colorbar(axes.collections[0], ax=axes, label="pairs in a cell")
    axes.set_title(f"r = {result.correlation:.2f} over {len(information):,} pairs of items")
    axes.set(xlabel=INFORMATION, ylabel=COVARIANCE)
    return figure
