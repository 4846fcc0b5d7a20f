"""Figures of representational similarity analysis."""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure

from palinka.analyses.figures import style
from palinka.analyses.representational_similarity import RepresentationalSimilarity as Result
from palinka.analyses.result import Array
from palinka.analyses.stats.similarity import Indices, triangle

SCORES = {
    "pearson": "Pearson's r",
    "spearman": "Spearman's ρ",  # noqa: RUF001
    "kendall": "Kendall's τ-a",
    "cka": "CKA",
}
BETWEEN = "#D9D9D9"
# Maximum number of labels along a side: of more words, every second, third … is written.
MAX_LABELS = 40
# More points than this would hide each other.
MAX_PAIRS = 4000


@style.captioned(
    groups="The mean similarity of each word to its own group (filled) and to the others (open), "
    "at both sites: a word with the open mark on the right is not held with its group. Left, in "
    "color, the pairs of words that share a group.",
    similarity="The similarity of every pair of words at both sites, each on its own scale, words "
    "of a group side by side. A group that a site holds together is a bright square.",
    histograms="The distribution of the similarities of all pairs at each site, each on its own "
    "scale.",
    comparison="Each point is a pair of words: its similarity at one site against that at the "
    "other; those farthest from the line are named. The closer to a rising line, the more the two "
    "sites arrange the words alike.",
    null="The score among those of words that are shuffled at one site (Mantel's test), and its "
    "95 % interval over resampled words.",
)
def representational_similarity(
    result: Result, items: Sequence[str] | None = None,
    sites: Sequence[str] = ("x", "y"), **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw two sites' similarities among the same words, the `items`, and their groups."""
    # Words of a group stand together, whatever order they came in.
    member, count = result.membership, len(result.similarity_x)
    order = np.arange(count) if member is None else np.argsort(member, kind="stable")
    words = [str(index + 1) if items is None else items[index] for index in range(count)]
    figures = {"comparison": _comparison(result, words, sites)}
    if result.null is not None:
        figures["null"] = _null(result, result.null, sites)
    if member is not None:
        figures["groups"] = _groups(result, member, order, words, sites)
    figures["similarity"] = _matrices(result, order, words, sites)
    figures["histograms"] = _histograms(result, sites)
    return figures


@style.captioned(
    scores="The score of each pair of sites: with its 95 % interval over resampled words, and in "
    "gray 95 % of the scores of shuffled words; or, of all pairs of sites, as a matrix, in which "
    "crosses mark p > 0.05.",
)
def overview(
    results: Mapping[str, Result], *, sites: Mapping[str, Sequence[str]] | None = None,
    **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw the scores of pairs of sites, whose names `sites` has by the keys of `results`."""
    pairs = [tuple((sites or {}).get(part, (part, "words"))) for part in results]
    found, names = list(results.values()), list(dict.fromkeys(chain(*pairs)))
    score = SCORES[found[0].compare]
    if 2 * len(pairs) == len(names) * (len(names) - 1):
        figure, axes = style.new_figure(style.WIDTH, 3.3)
        matrix = np.full((len(names), len(names)), np.nan)
        for pair, result in zip(pairs, found, strict=True):
            at = [names.index(site) for site in pair]
            matrix[at, at[::-1]] = result.score
            if result.p_value is not None and result.p_value > 0.05:
                axes.plot(at, at[::-1], "x", color="black")
        scale = style.color_scale(np.append(triangle(matrix), 0.0))
        figure.colorbar(axes.imshow(matrix, **scale), ax=axes, label=score, shrink=0.8)
        numbers, label = style.site_numbers(names)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(range(len(names)), list(map(str, numbers)))
            axis.set_label_text(label)
    else:
        figure, axes = style.new_figure()
        (xs, x_label), (ys, y_label) = map(style.site_numbers, zip(*pairs, strict=True))
        numbers, label = (xs, x_label) if len(set(ys)) == 1 else (ys, y_label)
        axes.set_title(" and ".join(dict.fromkeys(re.sub(r"\d+", "i", site) for site in pairs[-1])))
        nulls = [np.percentile(r.null, [2.5, 97.5]) for r in found if r.null is not None]
        if len(nulls) == len(found):
            axes.fill_between(numbers, *np.transpose(nulls), color=BETWEEN, label="words shuffled")
        for number, result in zip(numbers, found, strict=True):
            if result.score_interval is not None:
                axes.plot([number] * 2, result.score_interval, color=style.COLORS[0])
        axes.plot(numbers, [result.score for result in found], "o-", label="all words")
        for group, name in enumerate(found[0].group_names):
            scores = [result.group_scores[group] for result in found]
            axes.plot(numbers, scores, ls=":", lw=0.8, label=name, **style.look(group + 1))
        style.mark(axes, y=0.0)
        axes.set(xlabel=label, ylabel=score)
        figure.legend(loc="outside lower center", ncols=3)
    style.headline(figure, f"How alike sites arrange {len(found[0].similarity_x)} words")
    return {"scores": figure}


def _groups(
    result: Result, member: Indices, order: Indices, words: list[str], sites: Sequence[str]
) -> Figure:
    layout: dict[str, Any] = {"ncols": 3, "sharey": True, "width_ratios": (0.6, 1.0, 1.0)}
    height = 1.3 + 0.1 * np.clip(len(words), 8, MAX_LABELS)
    figure, (mask, *panels) = style.new_figure(style.WIDTH, height, **layout)
    same = member[order, None] == member[None, order]
    colors = ListedColormap([BETWEEN, *map(style.cycled, range(1, 1 + len(result.group_names)))])
    scale: dict[str, Any] = {"vmin": -0.5, "vmax": len(result.group_names) + 0.5, "cmap": colors}
    shared = np.where(same, member[order, None] + 1, 0)
    mask.imshow(shared, aspect="auto", interpolation="nearest", **scale)
    mask.set(title="groups", xlabel="word")
    for axes, name, site in zip(panels, "xy", sites, strict=True):
        matrix, at = getattr(result, f"similarity_{name}")[np.ix_(order, order)], range(len(words))
        own, others = (
            np.where(pairs, matrix, 0.0).sum(axis=1) / np.maximum(pairs.sum(axis=1), 1)
            for pairs in (same & ~np.eye(len(words), dtype=bool), ~same)
        )
        axes.hlines(at, own, others, color=BETWEEN, linewidth=0.8, zorder=0)
        axes.plot(others, at, "o", ms=5, mfc="white", color="black", label="to other groups")
        axes.plot(own, at, "o", ms=2, color="black", label="to its own group")
        axes.set(title=site.replace(", ", ",\n"), xlabel="mean cosine")
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="y", length=0)
    _name_words(mask, words, order)
    _name_groups(panels[1], result)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    style.headline(figure, f"Similarity of {len(words)} words to their own and to other groups")
    return figure


def _matrices(result: Result, order: Indices, words: list[str], sites: Sequence[str]) -> Figure:
    figure, panels = style.new_figure(style.WIDTH, 8.4, nrows=2)
    for axes, name, site in zip(panels, "xy", sites, strict=True):
        matrix = getattr(result, f"similarity_{name}")[np.ix_(order, order)]
        scale = style.color_scale(triangle(matrix))
        np.fill_diagonal(matrix, np.nan)  # always 1, it would take the colors away from the rest
        drawn = axes.imshow(matrix, **scale)
        _name_words(axes, words, order, columns=True)
        if result.membership is not None:
            for edge in np.flatnonzero(np.diff(result.membership[order])) + 0.5:
                axes.axhline(edge, color="white", linewidth=1.2)
                axes.axvline(edge, color="white", linewidth=1.2)
            _name_groups(axes, result)
        bar: dict[str, Any] = {"location": "bottom", "aspect": 30, "pad": 0.02}
        figure.colorbar(drawn, ax=axes, label="cosine similarity", **bar)
        axes.set_title(site)
    style.headline(figure, f"Similarity of {len(words)} words at two sites, each on its own scale")
    return figure


def _histograms(result: Result, sites: Sequence[str]) -> Figure:
    figure, panels = style.new_figure(style.WIDTH, 4.1, nrows=2)
    member = np.arange(len(result.similarity_x)) if result.membership is None else result.membership
    within = triangle(member[:, None] == member[None, :])
    kinds = (
        (~within, style.MUTED, "", "between groups" if result.group_names else "all"),
        (within, style.COLORS[1], "////", "within a group"),
    )
    for axes, name, site in zip(panels, "xy", sites, strict=True):
        values, means = triangle(getattr(result, f"similarity_{name}")), []
        edges = np.histogram_bin_edges(values, bins=min(40, max(8, int(np.sqrt(len(values))))))
        for chosen, color, hatch, kind in kinds:
            if count := chosen.sum():
                options: dict[str, Any] = {"fc": (*to_rgb(color), 0.4), "ec": color, "hatch": hatch}
                options |= {"histtype": "stepfilled", "label": f"{kind}: {count:,} pairs"}
                axes.hist(values[chosen], edges, weights=np.full(count, 100.0 / count), **options)
                means.append(values[chosen].mean())
                axes.axvline(means[-1], color=color, linestyle="--")
        axes.set_title(f"{site}\nmeans {' and '.join(f'{mean:.3g}' for mean in means)} (dashed)")
        axes.set_ylabel("share of pairs (%)")
    panels[1].set_xlabel("cosine similarity")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    style.headline(figure, "How similar pairs of words are")
    return figure


def _comparison(result: Result, words: list[str], sites: Sequence[str]) -> Figure:
    figure, axes = style.new_figure(style.WIDTH, 3.5)
    x, y = triangle(result.similarity_x), triangle(result.similarity_y)
    first, second = np.triu_indices(len(words), 1)
    member = np.arange(len(words)) if result.membership is None else result.membership
    between = member[first] != member[second]
    points: dict[str, Any] = {"linewidths": 0, "rasterized": True, "alpha": 0.7}
    if len(x) > MAX_PAIRS:
        axes.hexbin(x, y, gridsize=45, bins="log", cmap="Greys", mincnt=1, linewidths=0.1)
    else:
        axes.scatter(x[between], y[between], 4, color=style.MUTED, **points, label="between groups")
    for group, name in enumerate(result.group_names):
        chosen, value = (member[first] == group) & ~between, result.group_scores[group]
        label = f"{name}: {value:.2f}" if np.isfinite(value) else f"{name}: no score"
        axes.scatter(x[chosen], y[chosen], 8, label=label, **style.look(group + 1), **points)
    if np.ptp(x) > 0:
        line, ends = np.polynomial.Polynomial.fit(x, y, 1), np.array([x.min(), x.max()])
        axes.plot(ends, line(ends), color="black", linewidth=0.8)
        far = np.argsort(-np.abs(y - line(x)))[: style.NAMED]
        named = {at: f"{words[first[at]]} / {words[second[at]]}" for at in far}
        style.name_points(axes, x, y, far, named)
    chance = "" if result.p_value is None else f", p = {result.p_value:.2g}"
    interval = result.score_interval
    spread = "" if interval is None else " [{:.2f}, {:.2f}]".format(*interval)
    axes.set_title(f"{SCORES[result.compare]} = {result.score:.2f}{spread}{chance}")
    axes.set(xlabel=f"cosine at {sites[0]}", ylabel=f"cosine at {sites[1]}")
    if result.group_names:
        title = "pairs, and scores within groups"
        figure.legend(loc="outside lower center", ncols=2, markerscale=1.5, title=title)
    style.headline(figure, "Pairs of words at one site against the other")
    return figure


def _null(result: Result, null: Array, sites: Sequence[str]) -> Figure:
    figure, axes = style.new_figure(style.WIDTH, 2.5)
    style.draw_null(axes, null, result.score, "words shuffled")
    if result.score_interval is not None:
        look: dict[str, Any] = {"color": style.COLORS[1], "alpha": 0.25, "linewidth": 0}
        axes.axvspan(*result.score_interval, label="95 % interval", **look)
    axes.set(xlabel=SCORES[result.compare], ylabel="shuffles")
    axes.set_title(f"{result.score:.2f}, p = {result.p_value:.2g} by {len(null):,} shuffles")
    style.headline(figure, f"Similarity of {sites[0]} and {sites[1]} against chance")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _name_words(axes: Axes, words: list[str], order: Indices, columns: bool = False) -> None:
    shown = np.arange(0, len(words), ceil(len(words) / MAX_LABELS))
    names: Any = [words[order[index]] for index in shown]
    options: dict[str, Any] = {"fontsize": 6, "parse_math": False}
    axes.set_yticks(shown, names, **options)
    axes.set_xticks(shown, names if columns else [], rotation=90, **options)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _name_groups(axes: Axes, result: Result) -> None:
    assert result.membership is not None
    ends = np.cumsum(np.bincount(result.membership))
    look: dict[str, Any] = {"rotation": 270, "va": "center", "fontsize": "small"}
    look["transform"] = axes.get_yaxis_transform()
    for name, end, size in zip(result.group_names, ends, np.diff(ends, prepend=0), strict=True):
        axes.text(1.02, end - size / 2 - 0.5, name, parse_math=False, **look)
