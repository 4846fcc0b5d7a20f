"""Figures of representational similarity analysis."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure

from palinka.analyses.figures import style
from palinka.analyses.representational_similarity import RepresentationalSimilarity as Result
from palinka.analyses.result import Mask
from palinka.analyses.stats.similarity import Indices, triangle

SCORES = {
    "pearson": "Pearson's r",
    "spearman": "Spearman's ρ",  # noqa: RUF001
    "kendall": "Kendall's τ-a",
    "cka": "CKA",
}
BETWEEN = "#D9D9D9"
# Maximum number of labels along a side: of more words, every second, third … is written.
MAX_LABELS = 60
# More points than this would hide each other.
MAX_PAIRS = 4000


@style.captioned(
    groups="The pairs of words that share a group, which are compared within groups.",
    similarity="The similarity of every pair of words at both sites, words of a group side by "
    "side. A group that a site holds together is a bright square on the diagonal.",
    histograms="The distribution of the similarities of all pairs at each site.",
    comparison="Each point is a pair of words: its similarity at one site against that at the "
    "other. The closer to a rising line, the more the two sites arrange the words alike.",
)
def representational_similarity(
    result: Result, items: Sequence[str] | None = None,
    sites: Sequence[str] = ("x", "y"), **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw two sites' similarities among the same words, the `items`, and their groups."""
    # Words of a group stand together, whatever order they came in.
    member, count = result.membership, len(result.similarity_x)
    order = np.arange(count) if member is None else np.argsort(member, kind="stable")
    words = [str(index + 1) if items is None else items[index] for index in order]
    figures = {}
    if member is not None:
        figures["groups"] = _mask(result.group_names, member[order], words)
    figures["similarity"] = _matrices(result, order, words, sites)
    figures["histograms"] = _histograms(result, sites)
    figures["comparison"] = _comparison(result, sites)
    return figures


def _mask(names: Sequence[str], member: Indices, words: list[str]) -> Figure:
    side = _side(len(words))
    figure, axes = style.new_figure(side + 1.4, side)
    shared = np.where(member[:, None] == member[None, :], member[:, None] + 1, 0)
    colors = [BETWEEN, *map(style.cycled, range(len(names)))]
    # Categories have no means: many words are thinned out.
    step = ceil(len(shared) / style.MAX_SIDE)
    edge = len(words) - 0.5
    scale: dict[str, Any] = {"vmin": -0.5, "vmax": len(names) + 0.5, "cmap": ListedColormap(colors)}
    axes.imshow(shared[::step, ::step], extent=(-0.5, edge, edge, -0.5), **scale)
    _name_words(axes, words, member, rows=True)
    for name, color in zip([*names, "two groups"], [*colors[1:], BETWEEN], strict=True):
        axes.plot([], [], "s", markersize=7, color=color, label=name)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="pair within")
    axes.set_title(f"{len(words)} words in {len(names)} groups")
    return figure


def _matrices(result: Result, order: Indices, words: list[str], sites: Sequence[str]) -> Figure:
    side = _side(len(words))
    figure, panels = style.new_figure(2 * side + 0.4, side, ncols=2)
    off_diagonal = ~np.eye(len(words), dtype=bool)
    both = result.similarity_x, result.similarity_y
    # One scale for both; the diagonal, always 1, must not take the colors away from the rest.
    low = min(matrix[off_diagonal].min() for matrix in both)
    high = max(matrix[off_diagonal].max() for matrix in both)
    member = None if result.membership is None else result.membership[order]
    for axes, matrix, site in zip(panels, both, sites, strict=True):
        shown = np.where(off_diagonal, matrix[np.ix_(order, order)], high)
        drawn = style.draw_matrix(axes, shown, vmin=low, vmax=high, cmap="viridis")
        _name_words(axes, words, member, rows=axes is panels[0])
        for edge in np.flatnonzero(np.diff(() if member is None else member)) + 0.5:
            axes.axhline(edge, color="white", linewidth=1.2)
            axes.axvline(edge, color="white", linewidth=1.2)
        axes.set_title(site)
    figure.set_layout_engine("compressed")  # square panels leave no gaps to fill
    label = style.color_label("cosine similarity (diagonal: 1)", shown)
    figure.colorbar(drawn, ax=panels, label=label, shrink=0.8)
    return figure


def _histograms(result: Result, sites: Sequence[str]) -> Figure:
    figure, panels = style.new_figure(7.5, 3.2, ncols=2, sharey=True)
    for axes, name, site in zip(panels, "xy", sites, strict=True):
        values = triangle(getattr(result, f"similarity_{name}"))
        edges = np.histogram_bin_edges(values, bins=min(40, max(8, int(np.sqrt(len(values))))))
        for kind, chosen, color in _kinds(result):
            if chosen.any():
                pairs, count = values[chosen], len(values[chosen])
                options = {"color": color, "alpha": 0.55, "label": f"{kind} ({count:,})"}
                axes.hist(pairs, edges, weights=np.full(count, 100.0 / count), **options)
                axes.axvline(pairs.mean(), color=color, linewidth=1.4, linestyle="--")
        selectivity = getattr(result, f"selectivity_{name}")
        axes.set_title(site if selectivity is None else f"{site}: selectivity {selectivity:.3g}")
        axes.set_xlabel("cosine similarity (mean dashed)")
        axes.legend(title="pairs of words")
    panels[0].set_ylabel("share of these pairs (%)")
    return figure


def _comparison(result: Result, sites: Sequence[str]) -> Figure:
    names, shared = result.group_names, {"sharex": True, "sharey": True}
    count, columns = len(names) + 1, min(4, len(names) + 1)
    figure, panels = style.small_multiples(count, columns, (2.7, 2.7), (1.0, 0.5), **shared)
    x, y = triangle(result.similarity_x), triangle(result.similarity_y)
    points: dict[str, Any] = {"linewidths": 0, "rasterized": True}
    if len(x) > MAX_PAIRS:
        panels[0].hexbin(x, y, gridsize=45, bins="log", cmap="Greys", mincnt=1, linewidths=0.1)
    else:
        for label, chosen, color in _kinds(result):
            options = {"color": color, "alpha": 0.6, "label": label, **points}
            panels[0].scatter(x[chosen], y[chosen], 7, **options)
        if names:
            panels[0].legend(loc="best", markerscale=2, handletextpad=0.1, title="pairs")
    chance = "" if result.p_value is None else f", p = {result.p_value:.2g}"
    interval = result.score_interval
    spread = "" if interval is None else " [{:.2f}, {:.2f}]".format(*interval)
    score = SCORES[result.compare]
    panels[0].set_title(f"all pairs{chance}\n{score} = {result.score:.2f}{spread}")
    for group, (axes, name) in enumerate(zip(panels[1:], names, strict=True)):
        inside = result.membership == group
        chosen = triangle(np.logical_and.outer(inside, inside))
        axes.scatter(x[chosen], y[chosen], 9, color=style.cycled(group), alpha=0.7, **points)
        value = result.group_scores[group]
        text = f"{score} = {value:.2f}" if np.isfinite(value) else "no score"
        axes.set_title(f"{name}\n{text}")
    for axes in panels:
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.set_xlabel(f"cosine at {sites[0]}")
    for axes in panels[::columns]:
        axes.set_ylabel(f"cosine at {sites[1]}")
    return figure


def _kinds(result: Result) -> list[tuple[str, Mask, str]]:
    """Kinds of pairs in drawing order: name, mask over the triangle, color."""
    member = result.membership
    if member is None:
        return [("all", triangle(np.ones_like(result.similarity_x, dtype=bool)), style.COLORS[0])]
    within = triangle(member[:, None] == member[None, :])
    return [("between groups", ~within, style.MUTED), ("within a group", within, style.COLORS[1])]


def _name_words(axes: Axes, words: list[str], member: Indices | None, rows: bool) -> None:
    """Write the words along the sides of a matrix, in their group's color."""
    shown = np.arange(0, len(words), ceil(len(words) / MAX_LABELS))
    names = [words[index] for index in shown]
    size = 7.0 if len(shown) <= 40 else 5.5
    axes.set_xticks(shown, names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(shown, names if rows else [], fontsize=size, parse_math=False)
    axes.set(xlabel="word", ylabel="word" if rows else "")
    axes.tick_params(length=0)
    axes.spines[["bottom", "left"]].set_visible(False)
    if member is not None:
        for texts in (axes.get_xticklabels(), axes.get_yticklabels()):
            for index, text in zip(shown, texts, strict=False):
                red, green, blue = to_rgb(style.cycled(int(member[index])))
                text.set_color((0.7 * red, 0.7 * green, 0.7 * blue))  # dark enough to read


def _side(words: int) -> float:
    return float(np.clip(1.6 + 0.11 * words, 3.2, 8.0))
