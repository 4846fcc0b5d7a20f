"""Figures of pairwise mutual information."""

import re
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, TypeVar

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.scale import SymmetricalLogTransform
from numpy.typing import ArrayLike

from palinka.analyses.figures import style
from palinka.analyses.pairwise_mutual_information import ROUNDING, correlation_over_pairs
from palinka.analyses.pairwise_mutual_information import PairwiseMutualInformation as Result
from palinka.analyses.stats.similarity import Array, triangle

MEASURES = ("mutual information (bits)", "covariance (squared activation)")
TOGETHER = "together"
# Pairs of each condition that are drawn in a small panel; r is that of all pairs.
MAX_PANEL_POINTS = 800
BINS = 60
# Values that differ by more than this factor are drawn on a logarithmic scale.
WIDE = 100.0
# Units this many times larger than nine tenths of the others get a logarithmic part of the axis.
HUGE = 10.0
# Percentiles: rare extremes would take the colors away from all other pairs.
IN_COLOR = (1.0, 99.0)

T = TypeVar("T")
# Both measures over the pairs of each condition.
ByCondition = dict[str, tuple[Array, ...]]


@style.captioned(
    matrices="Mutual information and covariance of every pair of items, and how both are "
    "distributed. The line is the mutual information with the Miller-Madow correction.",
    comparison="Each point is a pair of items: its covariance against its mutual information. "
    "Pairs high in information at little covariance depend on each other in no straight line.",
)
def pairwise_mutual_information(result: Result, **context: Any) -> dict[str, Figure]:
    """Draw the measures over the items of one condition at one site."""
    return {"matrices": _matrices(result), "comparison": _comparison(result)}


@style.captioned(
    comparison_by_site="Covariance against mutual information of every pair of items, a panel for "
    "each site and a color for each condition.",
    distributions="The distributions of mutual information and covariance over pairs, a panel for "
    "each condition and a color for each site.",
    means_by_site="Mean mutual information and covariance of pairs from site to site.",
    mean_activation="The mean activation of every unit, and of one condition against the other.",
)
def overview(
    results: Mapping[str, Result], *, conditions: Sequence[str] = (),
    means: Mapping[str, ArrayLike] | None = None, units: str = "units", **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw the measures at all sites, condition by condition and together.

    `results` are by `site/condition`, or by site alone; `conditions` give their order. By the same
    keys `means` are the mean activations over items, `(units,)`, drawn for two conditions or more.
    """
    found: dict[str, ByCondition] = {}
    for site, of_site in _by_site_and_condition(results, conditions).items():
        found[site] = {
            condition: (triangle(result.mutual_information), triangle(result.covariance))
            for condition, result in of_site.items()
        }
        if len(of_site) > 1:
            both = zip(*found[site].values(), strict=True)
            found[site][TOGETHER] = tuple(np.concatenate(each) for each in both)
    names = list(dict.fromkeys(name for pairs in found.values() for name in pairs))
    names.sort(key=TOGETHER.__eq__)  # it comes last
    numbers, label = _numbers(list(found))
    sites = dict(zip(numbers, found.values(), strict=True))
    figures = {
        "comparison_by_site": _scatter_by_site(found, names),
        "distributions": _distributions(sites, label, names),
        "means_by_site": _means_by_site(sites, label, names),
    }
    activations = _by_site_and_condition(means or {}, conditions)
    if activations and all(len(of_site) > 1 for of_site in activations.values()):
        figures["mean_activation"] = _mean_activations(activations, units)
    return figures


def _by_site_and_condition(
    values: Mapping[str, T], conditions: Sequence[str]
) -> dict[str, dict[str, T]]:
    """Group values with keys `site/condition`, or `site`, by site and condition."""
    found: dict[str, dict[str, T]] = {key.partition("/")[0]: {} for key in values}
    rank = {condition: index for index, condition in enumerate(conditions)}
    for key in sorted(values, key=lambda key: rank.get(key.partition("/")[2], len(rank))):
        site, _, condition = key.partition("/")
        found[site][condition] = values[key]
    return found


def _bin_edges(low: float, high: float, threshold: float | None = None) -> Array:
    """Edges of equal bins, also where all values are the same but for rounding.

    With a threshold they are equal on a signed logarithmic scale that is linear up to it.
    """
    if threshold is not None:
        transform = SymmetricalLogTransform(10, threshold, 1.0)
        low, high = transform.transform(np.array([low, high]))
        return np.asarray(transform.inverted().transform(_bin_edges(low, high)))
    if high - low <= ROUNDING * max(abs(low), abs(high)):
        margin = 0.5 * abs(high) or 0.5
        low, high = low - margin, high + margin
    return np.linspace(low, high, BINS + 1)


def _matrices(result: Result) -> Figure:
    figure, panels = style.new_figure(8.4, 6.0, nrows=2, ncols=2, height_ratios=(2.2, 1.0))
    information, covariance = triangle(result.mutual_information), triangle(result.covariance)
    corrected, samples = triangle(result.mutual_information_corrected), triangle(result.samples)
    _draw_pairs(panels[0, 0], result.mutual_information, MEASURES[0])
    _draw_pairs(panels[0, 1], result.covariance, MEASURES[1])
    panels[0, 0].set_title(f"{len(information):,} pairs of {len(result.covariance):,} items")
    kept = sorted({f"{int(samples.min()):,}", f"{int(samples.max()):,}"}, key=len)
    panels[0, 1].set_title(f"{' to '.join(kept)} units kept in each pair")
    below, beside = panels[1]
    both = np.concatenate([information, corrected])
    edges = _bin_edges(both.min(), both.max())
    below.hist(information, bins=edges, color=style.COLORS[0], alpha=0.75, label="plain")
    below.hist(corrected, bins=edges, histtype="step", color=style.COLORS[1], label="Miller-Madow")
    below.legend()
    below.set_title(f"means {information.mean():.3g} and {corrected.mean():.3g}")
    below.set_ylabel("pairs")
    edges = _bin_edges(covariance.min(), covariance.max())
    beside.hist(covariance, bins=edges, color=style.COLORS[0], alpha=0.75)
    beside.set_title(f"mean {covariance.mean():.3g}, median {np.median(covariance):.3g}")
    for axes, name in zip(panels[1], MEASURES, strict=True):
        axes.set_xlabel(name)
        axes.locator_params(axis="x", nbins=5)
    return figure


def _draw_pairs(axes: Axes, matrix: Array, label: str) -> None:
    pairs = triangle(matrix)
    low, high = np.percentile(pairs, IN_COLOR)
    signed = low < 0 < high
    if signed:
        high = max(-low, high)
        low = -high
    elif high - low <= ROUNDING * max(abs(low), abs(high)):
        low, high = _bin_edges(low, high)[[0, -1]]
    # Both halves are drawn: half a square is harder to read. The diagonal has no pairs.
    whole = matrix + matrix.T
    np.fill_diagonal(whole, np.nan if len(matrix) <= style.MAX_SIDE else pairs.mean())
    cmap = style.DIVERGING if signed else "viridis"
    image = style.draw_matrix(axes, whole, 1, vmin=low, vmax=high, cmap=cmap, aspect="auto")
    axes.set_box_aspect(1)
    label = style.color_label(label, whole)
    axes.figure.colorbar(image, ax=axes, label=label, extend="both", shrink=0.9, pad=0.02)
    axes.set(xlabel="item", ylabel="item")
    axes.spines[["bottom", "left"]].set_visible(False)


def _comparison(result: Result) -> Figure:
    figure, axes = style.new_figure(5.2, 4.0)
    information, covariance = triangle(result.mutual_information), triangle(result.covariance)
    style.draw_points(axes, information, covariance)
    style.mark(axes, y=0.0)
    if axes.collections:
        figure.colorbar(axes.collections[0], ax=axes, label="pairs in a cell")
    axes.set_title(f"r = {result.correlation:.2f} over {len(information):,} pairs of items")
    axes.set(xlabel=MEASURES[0], ylabel=MEASURES[1])
    return figure


def _scatter_by_site(results: Mapping[str, ByCondition], names: Sequence[str]) -> Figure:
    """Covariance against information: a panel for each site, a color for each condition."""
    columns = min(len(results), max(3, ceil(np.sqrt(1.5 * len(results)))))
    figure, panels = style.small_multiples(len(results), columns, (1.75, 1.6), (1.0, 1.2))
    random = np.random.default_rng(0)
    for axes, (site, pairs) in zip(panels, results.items(), strict=True):
        points, colors = [], []
        for condition, measured in pairs.items():
            if condition != TOGETHER:
                drawn = random.permutation(len(measured[0]))[:MAX_PANEL_POINTS]
                points.append(np.stack(measured)[:, drawn])
                colors += [style.cycled(names.index(condition))] * len(drawn)
        # In random order, so that no condition hides another.
        order = random.permutation(len(colors))
        x, y = np.concatenate(points, axis=1)[:, order]
        options: dict[str, Any] = {"alpha": 0.6, "linewidths": 0, "rasterized": True}
        axes.scatter(x, y, 2.5, color=np.array(colors)[order], **options)
        style.mark(axes, y=0.0)
        correlations = [correlation_over_pairs(*measured) for measured in pairs.values()]
        texts = [f"{r:.2f}" if np.isfinite(r) else "none" for r in correlations]
        axes.set_title(f"{site}\nr = {' | '.join(texts)}", fontsize=7)
        axes.tick_params(labelsize=6)
        axes.locator_params(nbins=3)
    figure.supxlabel(MEASURES[0], fontsize="medium")
    figure.supylabel(MEASURES[1], fontsize="medium")
    _legend(figure, [name for name in names if name != TOGETHER], f"r = {' | '.join(names)}")
    return figure


def _distributions(sites: Mapping[int, ByCondition], label: str, names: Sequence[str]) -> Figure:
    """Both measures over pairs, a panel for each condition, a curve for each site."""
    layout = {"nrows": 2, "ncols": len(names), "sharex": "row", "sharey": "row"}
    figure, panels = style.new_figure(1.8 + 2.7 * len(names), 5.0, squeeze=False, **layout)
    uniform = [[n for n, pairs in sites.items() if _is_uniform(pairs, m)] for m in (0, 1)]
    drawn = [number for number in sites if not all(number in each for each in uniform)]
    scale = Normalize(min(drawn or sites), max(drawn or sites))
    for measure, row in enumerate(panels):
        curves = {n: pairs for n, pairs in sites.items() if n not in uniform[measure]}
        values = [each[measure] for pairs in (curves or sites).values() for each in pairs.values()]
        threshold = _log_threshold(np.concatenate(values))
        low, high = np.percentile(np.concatenate(values), [0.1, 99.9])
        edges = _bin_edges(low, high, threshold)
        for axes, name in zip(row, names, strict=True):
            for number, pairs in curves.items():
                if name in pairs:
                    counts, _ = np.histogram(pairs[name][measure], bins=edges)
                    centers, share = (edges[1:] + edges[:-1]) / 2, counts / max(1, counts.max())
                    color = colormaps["viridis"](scale(number))
                    axes.plot(centers, share, color=color, linewidth=1.0)
            if threshold is not None:
                axes.set_xscale("symlog", linthresh=threshold)
            axes.set(xlabel=MEASURES[measure], ylim=(0.0, 1.2 if uniform[measure] else 1.05))
            if uniform[measure]:
                which = ", ".join(map(str, uniform[measure]))
                text, where = f"not drawn, all pairs equal: {which}", axes.transAxes
                look: dict[str, Any] = {"fontsize": "x-small", "color": style.MUTED}
                axes.text(0.98, 0.97, text, ha="right", va="top", transform=where, **look)
        row[0].set_ylabel("pairs, relative to the peak")
    for axes, condition in zip(panels[0], names, strict=True):
        axes.set_title(condition or "all pairs")
    if len(drawn) > 1:
        figure.colorbar(ScalarMappable(scale, "viridis"), ax=panels, label=label)
    return figure


def _is_uniform(pairs: ByCondition, measure: int) -> bool:
    """True if all pairs of a condition are equal, as those of one token's embeddings are."""
    values = (each[measure] for each in pairs.values())
    return any(np.ptp(each) <= ROUNDING * np.abs(each).max() for each in values)


def _means_by_site(sites: Mapping[int, ByCondition], label: str, names: Sequence[str]) -> Figure:
    """Means of both measures by site, with the range of the middle half of pairs."""
    figure, panels = style.new_figure(9.0, 3.6, ncols=2)
    for measure, axes in enumerate(panels):
        for index, name in enumerate(names):
            values = {n: pairs[name][measure] for n, pairs in sites.items() if name in pairs}
            means = [value.mean() for value in values.values()]
            if name == TOGETHER:
                axes.plot(list(values), means, "--", color="black", linewidth=1.0, label=name)
                continue
            color = style.cycled(index)
            axes.plot(list(values), means, "o-", color=color, linewidth=1.4, label=name or "mean")
            quarters = np.transpose([np.percentile(each, [25, 75]) for each in values.values()])
            axes.fill_between(list(values), *quarters, color=color, alpha=0.18, linewidth=0)
        axes.set(xlabel=label, ylabel=MEASURES[measure])
        axes.xaxis.get_major_locator().set_params(integer=True)
    covariances = [each[1] for pairs in sites.values() for each in pairs.values()]
    threshold = _log_threshold(np.concatenate(covariances))
    if threshold is not None:
        panels[1].set_yscale("symlog", linthresh=threshold)
    style.mark(panels[1], y=0.0)
    panels[0].set_ylim(bottom=min(0.0, panels[0].get_ylim()[0]))
    panels[0].set_title("means over pairs, and the middle half of pairs")
    panels[0].legend()
    return figure


def _mean_activations(means: Mapping[str, Mapping[str, ArrayLike]], units: str) -> Figure:
    """The mean activation of each unit, and one condition against the others."""
    shown = list(means)
    if len(shown) > 3:
        shown = [shown[0], shown[len(shown) // 2], shown[-1]]
    columns = max(len(means[site]) for site in shown)
    size = 4.2 + 2.8 * (columns - 1), 0.6 + 2.6 * len(shown)
    layout = {"nrows": len(shown), "ncols": columns, "squeeze": False}
    ratios = [1.6, *[1.0] * (columns - 1)]
    figure, panels = style.new_figure(*size, width_ratios=ratios, **layout)
    for row, site in zip(panels, shown, strict=True):
        values = {name: np.asarray(mean, np.float64) for name, mean in means[site].items()}
        first, *others = values
        bulk = _bulk(np.concatenate(list(values.values())))
        points: dict[str, Any] = {"markersize": 2.2, "alpha": 0.7, "mew": 0, "rasterized": True}
        for index, (name, value) in enumerate(values.items()):
            row[0].plot(value, "o", color=style.cycled(index), label=name, **points)
        style.mark(row[0], y=0.0)
        row[0].set(title=site, xlabel=style.number_of(units), ylabel="mean activation")
        symlog = {} if bulk is None else {"linthresh": bulk, "linscale": 2}
        if symlog:
            row[0].set_yscale("symlog", **symlog)
        for axes, name in zip(row[1:], others, strict=False):
            style.draw_points(axes, values[first], values[name])
            limits = np.transpose([axes.get_xlim(), axes.get_ylim()])
            both = np.array([limits[0].min(), limits[1].max()])
            if symlog:
                both *= 1.5  # a margin that logarithms still show
                axes.set_xscale("symlog", **symlog)
                axes.set_yscale("symlog", **symlog)
            axes.plot(both, both, color=style.MUTED, linewidth=0.8, zorder=0)
            axes.set(xlim=both, ylim=both)
            axes.set_title(f"r = {correlation_over_pairs(values[first], values[name]):.3f}")
            axes.set(xlabel=f"mean activation, {first}", ylabel=f"mean activation, {name}")
        for axes in row[1 + len(others) :]:
            axes.remove()
    _legend(figure, list(means[shown[0]]))
    return figure


def _numbers(sites: list[str]) -> tuple[list[int], str]:
    """A number for each site: its layer if the names differ in nothing else, or its place."""
    parts = [re.fullmatch(r"(\D*)(\d+)(\D*)", site) for site in sites]
    matches = [match for match in parts if match]
    if len(matches) == len(sites) and len({(m[1], m[3]) for m in matches}) == 1:
        return [int(match[2]) for match in matches], f"layer ({matches[0][1]}i{matches[0][3]})"
    return list(range(1, len(sites) + 1)), "site, in the order given"


def _log_threshold(values: Array) -> float | None:
    """Linear range of a signed logarithmic scale; None if a linear scale is enough."""
    if not values.any():
        return None
    small, large = np.percentile(np.abs(values[values != 0]), [10, 100])
    return float(10.0 ** np.floor(np.log10(small))) if large > WIDE * small else None


def _bulk(values: Array) -> float | None:
    """A bound of most magnitudes, if a few huge ones would hide them; None if none is huge."""
    most, largest = np.percentile(np.abs(values), [90, 100])
    if largest <= HUGE * most or most == 0:
        return None
    return float(10.0 ** np.ceil(np.log10(most)))


def _legend(figure: Figure, conditions: Sequence[str], title: str | None = None) -> None:
    """Name the conditions above all panels; a single one without a name needs no legend."""
    if list(conditions) != [""]:
        handles = [
            Line2D([], [], marker="o", linestyle="", color=style.cycled(index), label=condition)
            for index, condition in enumerate(conditions)
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), title=title)
