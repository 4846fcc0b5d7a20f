"""Figures of pairwise mutual information."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.scale import SymmetricalLogTransform
from numpy.typing import ArrayLike

from palinka.analyses.figures import style
from palinka.analyses.pairwise_mutual_information import ROUNDING, all_equal, correlation_over_pairs
from palinka.analyses.pairwise_mutual_information import PairwiseMutualInformation as Result
from palinka.analyses.stats.similarity import Array, Indices, triangle

MEASURES = ("mutual information (bits)", "covariance (activation²)")
FIELDS = ("mutual_information", "covariance")
TOGETHER = "together"
# Pairs of each condition that are drawn in a small panel; r is that of all pairs.
MAX_PANEL_POINTS = 800
BINS = 60
# Percentile of the magnitudes over pairs, and how many times that a linear scale has at most.
PAIRS_IN_SCALE = 10.0, 100.0
# Percentiles: rare extremes would take the colors away from all other pairs.
IN_COLOR = (1.0, 99.0)
MIDDLE = (2.5, 97.5)
# Items whose mean is this many times farther from the median than half of the others stand out.
UNUSUAL = 5.0

T = TypeVar("T")
# Both measures over the pairs of each condition.
ByCondition = dict[str, tuple[Array, ...]]
_CAPTIONS = {
    "matrices": "Mutual information and covariance of every pair of items, on one scale for all "
    "conditions, and how both are distributed. In gray, the middle 95 % with the "
    "units of one item shuffled, that is, without dependence. Items that stand out are numbered on "
    "the left, and the first of them is quoted.",
    "comparison": "Each point is a pair of items: its covariance against its mutual information. "
    "Pairs high in information at little covariance depend on each other in no straight line, or "
    "are of small scale.",
}


@style.captioned(**_CAPTIONS)
def pairwise_mutual_information(
    result: Result, *, items: Sequence[str] = (), condition: str = "", site: str = "",
    conditions: Sequence[str] = (), **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw the measures over the `items` at one site; `overview` draws several conditions."""
    if condition and len(conditions) > 1:
        return {}
    return _at_one_site({condition: result}, site, {condition: items})


@style.captioned(
    comparison_by_site="Covariance against mutual information of every pair of items, a panel for "
    "each site and a marker for each condition.",
    distributions="The distributions of mutual information and covariance over pairs, a panel for "
    "each condition and a curve, with its number, for each site.",
    means_by_site="Mean mutual information and covariance of pairs from site to site, and the "
    "range of the middle half of pairs. Dashed, the mean information with the units of one item "
    "shuffled, and in gray its middle 95 %: without dependence, the estimate is there, not at 0.",
    mean_activation="Mean activations of every unit at the site in the middle, and of the second "
    "condition against the first. The units with the largest means are named.",
    **_CAPTIONS,
)
def overview(
    results: Mapping[str, Result], *, conditions: Sequence[str] = (),
    means: Mapping[str, ArrayLike] | None = None, units: str = "units",
    items: Mapping[str, Sequence[str]] | None = None, **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw the measures at all sites, condition by condition and together.

    `results` are by `site/condition`, or by site alone; `conditions` give their order. By the same
    keys `means` are the mean activations over items, `(units,)`, drawn for two conditions or more,
    and `items` their names. Several conditions are drawn together at the site in the middle.
    """
    by_site = _by_site_and_condition(results, conditions)
    found = {site: _measured(of_site) for site, of_site in by_site.items()}
    numbers, label = style.site_numbers(list(found))
    sites = dict(zip(numbers, found.values(), strict=True))
    figures = {}
    middle = list(by_site)[len(by_site) // 2]
    if len(by_site[middle]) > 1:
        labels = {c: (items or {}).get(f"{middle}/{c}", ()) for c in by_site[middle]}
        drawn = _at_one_site(by_site[middle], middle, labels)
        figures = {f"{middle}/{name}": figure for name, figure in drawn.items()}
    figures["comparison_by_site"] = _scatter_by_site(found)
    figures["distributions"] = _distributions(sites, label)
    figures["means_by_site"] = _means_by_site(sites, label, list(by_site.values()))
    of_site = _by_site_and_condition(means or {}, conditions).get(middle, {})
    if len(of_site) > 1:
        of_units = {condition: np.asarray(each) for condition, each in of_site.items()}
        first, second, *_ = of_units.values()
        every = [(np.ones(len(first), dtype=bool), "black", None)]
        named = style.extremes(np.abs(first), 2)
        figure, against = style.draw_means(of_units, every, named, units)
        against.set_title(f"r = {correlation_over_pairs(first, second):.3f}")
        style.headline(figure, f"Mean activation of every unit at {middle}, by condition")
        figures["mean_activation"] = figure
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


def _bin_edges(low: float, high: float, linthresh: float | None = None) -> Array:
    """Edges of equal bins, also where all values are the same but for rounding.

    With a threshold they are equal on a signed logarithmic scale that is linear up to it.
    """
    if linthresh is not None:
        transform = SymmetricalLogTransform(10, linthresh, 1.0)
        low, high = transform.transform(np.array([low, high]))
        return np.asarray(transform.inverted().transform(_bin_edges(low, high)))
    if high - low <= ROUNDING * max(abs(low), abs(high)):
        margin = 0.5 * abs(high) or 0.5
        low, high = low - margin, high + margin
    return np.linspace(low, high, BINS + 1)


def _measured(results: Mapping[str, Result]) -> ByCondition:
    """Measures of the pairs of each condition and, of several, of all pairs together."""
    pairs: ByCondition = {
        name: tuple(triangle(getattr(result, field)) for field in FIELDS)
        for name, result in results.items()
    }
    if len(pairs) > 1:
        pairs[TOGETHER] = tuple(map(np.concatenate, zip(*pairs.values(), strict=True)))
    return pairs


def _conditions(results: Iterable[ByCondition]) -> list[str]:
    """Conditions of any site, with all pairs together as the last."""
    names = dict.fromkeys(name for pairs in results for name in pairs)
    return sorted(names, key=TOGETHER.__eq__)


def _at_one_site(
    results: Mapping[str, Result], site: str, items: Mapping[str, Sequence[str]]
) -> dict[str, Figure]:
    comparison = _scatter_by_site({site: _measured(results)})
    return {"matrices": _matrices(results, site, items), "comparison": comparison}


def _matrices(
    results: Mapping[str, Result], site: str, items: Mapping[str, Sequence[str]]
) -> Figure:
    rows, quoted = len(results), []
    layout: dict[str, Any] = {"nrows": rows + 1, "ncols": 2, "height_ratios": [*[1.0] * rows, 0.7]}
    figure, panels = style.new_figure(style.WIDTH, 3.0 + 1.6 * rows, **layout)
    for column, (name, label) in enumerate(zip(FIELDS, MEASURES, strict=True)):
        pairs = [triangle(getattr(result, name)) for result in results.values()]
        corrected = [triangle(result.mutual_information_corrected) for result in results.values()]
        nulls = [result.null for result in results.values() if result.null is not None]
        scale = style.color_scale(np.concatenate(pairs), IN_COLOR)
        scale["vmin"], scale["vmax"] = _bin_edges(scale["vmin"], scale["vmax"])[[0, -1]]
        values = np.concatenate(pairs if column else [*pairs, *corrected, *nulls])
        edges, histogram = _bin_edges(values.min(), values.max()), panels[-1, column]
        for index, (condition, result) in enumerate(results.items()):
            # Both halves are drawn: half a square is harder to read. The diagonal has no pairs.
            matrix = getattr(result, name) + getattr(result, name).T
            means = matrix.sum(axis=1) / (len(matrix) - 1)
            np.fill_diagonal(matrix, np.nan)
            axes, unusual, glyph = panels[index, column], _unusual(means), style.GLYPHS[index % 6]
            ends = 0.5, len(matrix) + 0.5
            drawn = axes.imshow(matrix, extent=(*ends, *ends[::-1]), aspect="auto", **scale)
            axes.set_box_aspect(1)
            axes.set_yticks(1 + unusual, 1 + unusual, fontsize=6.5)
            axes.locator_params(axis="x", nbins=3)
            axes.set_title(f"{glyph} {condition} ({len(matrix)} items)" if column == 0 else glyph)
            if column == 0 and len(unusual) and len(items[condition]):
                item = int(unusual[0])
                quoted.append(f"{glyph} {item + 1}: {style.shortened(items[condition][item], 56)}")
            color = style.cycled(index)
            fill: dict[str, Any] = {"histtype": "stepfilled", "fc": (*to_rgb(color), 0.25)}
            counts, *_ = histogram.hist(pairs[index], edges, ec=color, **fill)
            if column == 0:
                histogram.hist(corrected[index], edges, histtype="step", ec=color, ls=":")
                for null in nulls[index : index + 1]:
                    low, high = np.percentile(null, MIDDLE)
                    histogram.axvspan(low, high, color=style.MUTED, alpha=0.3, lw=0)
            histogram.plot(pairs[index].mean(), 1.05 * counts.max(), **style.look(index))
        bar: dict[str, Any] = {"location": "bottom", "extend": "both", "aspect": 18}
        colors = figure.colorbar(drawn, ax=panels[:-1, column], **bar)
        colors.set_label(label, fontsize="small")
        histogram.set_title(f"means {' and '.join(f'{each.mean():.3g}' for each in pairs)}")
        shuffled = "\ngray: units shuffled, 95 %" * bool(nulls)
        dotted = "" if column else f"\ndotted: Miller-Madow{shuffled}"
        histogram.set_xlabel(MEASURES[column] + dotted, fontsize="small")
    panels[-1, 0].set_ylabel("pairs")
    style.headline(figure, f"Dependence of pairs of items {site and f'at {site}'}")
    figure.supxlabel("\n".join(quoted), fontsize=6.5, x=0.02, ha="left")
    return figure


def _unusual(means: Array) -> Indices:
    """Up to three items whose mean over their pairs is far from those of the others."""
    deviations = np.abs(means - np.median(means))
    far = np.argsort(-deviations, kind="stable")[: style.NAMED]
    far = far[deviations[far] > UNUSUAL * np.median(deviations)].tolist()
    # Labels of neighbors would cover each other.
    apart = [i for n, i in enumerate(far) if all(abs(i - j) > len(means) / 12 for j in far[:n])]
    return np.array(apart, dtype=int)


def _scatter_by_site(results: Mapping[str, ByCondition]) -> Figure:
    columns, most = (2, MAX_PANEL_POINTS) if len(results) > 1 else (1, style.MAX_POINTS)
    size = (style.WIDTH - 0.5) / columns, 2.2 / columns
    figure, panels = style.small_multiples(len(results), columns, size, (0.5, 1.0))
    random, names = np.random.default_rng(0), _conditions(results.values())
    for axes, (site, pairs) in zip(panels, results.items(), strict=True):
        texts = []
        for name, measured in pairs.items():
            index, r = names.index(name), correlation_over_pairs(*measured)
            glyph = "all" if name == TOGETHER else style.GLYPHS[index % 6]
            texts.append(f"{glyph} {r:.2f}" if np.isfinite(r) else f"{glyph} none")
            if name != TOGETHER:
                some = random.permutation(len(measured[0]))[:most]
                points = style.look(index) | {"alpha": 0.5, "linewidths": 0, "rasterized": True}
                x, y = np.stack(measured)[:, some]
                axes.scatter(x, y, 4, label=name, **points)
        # Of pairs that are all equal within each condition, r would be that of two points.
        equal = _is_uniform(pairs, 0) or _is_uniform(pairs, 1)
        shown = "all pairs equal" if equal else "  ".join(texts)
        axes.set_title(f"{site}\nr: {shown}", fontsize=6.5)
        axes.locator_params(nbins=4)
    for axes in panels[-columns:]:
        axes.set_xlabel(MEASURES[0], fontsize="small")
    style.headline(figure, "Covariance against mutual information of pairs of items")
    figure.supylabel(MEASURES[1], fontsize="medium")
    _legend(figure, panels[0])
    return figure


def _distributions(sites: Mapping[int, ByCondition], label: str) -> Figure:
    names = _conditions(sites.values())
    layout: dict[str, Any] = {"nrows": len(names), "ncols": 2, "sharex": "col", "squeeze": False}
    figure, panels = style.new_figure(style.WIDTH, 1.5 + 1.3 * len(names), **layout)
    uniform = [[n for n, pairs in sites.items() if _is_uniform(pairs, m)] for m in (0, 1)]
    drawn = [number for number in sites if not all(number in each for each in uniform)]
    scale = Normalize(min(drawn or sites), max(drawn or sites))
    for measure, column in enumerate(panels.T):
        curves = {n: pairs for n, pairs in sites.items() if n not in uniform[measure]}
        values = [each[measure] for pairs in (curves or sites).values() for each in pairs.values()]
        scaling, beyond = style.linear_range(np.concatenate(values), *PAIRS_IN_SCALE)
        low, high = np.percentile(np.concatenate(values), [0.1, 99.9])
        edges = _bin_edges(low, high, **scaling)
        for axes, name in zip(column, names, strict=True):
            for number, pairs in curves.items():
                if name not in pairs:
                    continue
                counts, _ = np.histogram(pairs[name][measure], bins=edges)
                centers, share = (edges[1:] + edges[:-1]) / 2, counts / max(1, counts.max())
                axes.plot(centers, share, color=colormaps["viridis"](scale(number)), linewidth=1.0)
                peak: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 6.5}
                above = 1.0 + 0.14 * (number % 3)  # neighbors may peak at one place
                axes.text(centers[share.argmax()], above, str(number), **peak)
            if scaling:
                axes.set_xscale("symlog", **scaling)
            axes.set(ylim=(0.0, 1.5), title=name or "all pairs")
        equal = ", ".join(map(str, uniform[measure]))
        missing = f"\nnot drawn, all equal: {equal}" if equal else ""
        column[-1].set_xlabel(MEASURES[measure] + beyond + missing, fontsize="small")
    figure.supylabel("pairs, relative to the peak", fontsize="medium")
    style.headline(figure, "Distributions over pairs of items, by site")
    if len(drawn) > 1:
        bar: dict[str, Any] = {"location": "bottom", "aspect": 30}
        figure.colorbar(ScalarMappable(scale, "viridis"), ax=panels, label=label, **bar)
    return figure


def _is_uniform(pairs: ByCondition, measure: int) -> bool:
    """True if all pairs of a condition are equal, as those of one token's embeddings are."""
    return any(all_equal(each[measure]) for each in pairs.values())


def _means_by_site(
    sites: Mapping[int, ByCondition], label: str, results: Sequence[Mapping[str, Result]]
) -> Figure:
    figure, panels = style.new_figure(style.WIDTH, 4.0, nrows=2, sharex=True)
    for measure, axes in enumerate(panels):
        for index, name in enumerate(_conditions(sites.values())):
            x = [number for number, pairs in sites.items() if name in pairs]
            values = [sites[number][name][measure] for number in x]
            means = [each.mean() for each in values]
            if name == TOGETHER:
                axes.plot(x, means, ":", color="black", linewidth=1.0, label=name)
                continue
            axes.plot(x, means, **style.look(index), label=name or "mean")
            color, nulls = style.cycled(index), (of[name].null for of in results if name in of)
            chance = [null for null in nulls if null is not None]
            quarters = np.transpose([np.percentile(each, [25, 75]) for each in values])
            axes.fill_between(x, *quarters, color=color, alpha=0.18, lw=0)
            if measure == 0 and len(chance) == len(x):
                low, high = np.percentile(chance, MIDDLE, axis=1)
                axes.fill_between(x, low, high, color=style.MUTED, alpha=0.3, lw=0)
                shuffled = f"{name}, units shuffled".removeprefix(", ")
                axes.plot(x, np.mean(chance, 1), "--", color=color, lw=1, label=shuffled)
        axes.set_ylabel(MEASURES[measure])
        axes.xaxis.get_major_locator().set_params(integer=True)
    covariances = np.concatenate([each[1] for pairs in sites.values() for each in pairs.values()])
    scaling, beyond = style.linear_range(covariances, *PAIRS_IN_SCALE)
    if scaling:
        panels[1].set_yscale("symlog", **scaling)
        panels[1].set_ylabel(MEASURES[1] + beyond)
    panels[0].set_ylim(bottom=min(0.0, panels[0].get_ylim()[0]))
    panels[1].set_xlabel(label)
    style.headline(figure, "Mean over pairs of items, and the middle half of pairs")
    _legend(figure, panels[0])
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    """Name the conditions below all panels; a single one without a name needs no legend."""
    handles = axes.get_legend_handles_labels()
    columns = 3 if len(handles[0]) <= 3 else 2
    figure.legend(*handles, loc="outside lower right", ncols=columns, markerscale=2)
