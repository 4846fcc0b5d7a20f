"""Figures of representational similarity analysis."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from palinka.analyses.figures.style import (
    COLORS,
    MUTED,
    block_means,
    captioned,
    color_label,
    cycled,
    new_figure,
    style,
)
from palinka.analyses.representational_similarity import RepresentationalSimilarity

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

_CAPTIONS = {
    "groups": "The pairs of words that share a group, which are compared within groups.",
    "similarity": (
        "The similarity of every pair of words at both sites, words of a group side by side. "
        "A group that a site holds together is a bright square on the diagonal."
    ),
    "histograms": "The distribution of the similarities of all pairs at each site.",
    "comparison": (
        "Each point is a pair of words: its similarity at one site against that at the other. "
        "The closer to a rising line, the more the two sites arrange the words alike."
    ),
}


def representational_similarity(
    result: RepresentationalSimilarity,
    items: Sequence[str] | None = None,
    sites: Sequence[str] = ("x", "y"),
    **context: Any,
) -> dict[str, Figure]:
    """Draw two sites' similarities among the same words.

    Args:
        result: Of `analyses.representational_similarity`.
        items: The words.
        sites: Names of the two sites.
        **context: Ignored.

    Returns:
        `groups` (which pairs of words share a group; only with groups), `similarity` (both
        matrices), `histograms` (of their triangles) and `comparison` (one site's similarities
        against the other's, over all pairs and within each group).
    """
    # Words of a group stand together, whatever order they came in.
    member = result.membership
    count = len(result.similarity_x)
    order = np.arange(count) if member is None else np.argsort(member, kind="stable")
    labels = [str(index + 1) for index in range(count)] if items is None else list(items)
    words = [labels[index] for index in order]
    with style():
        figures = {
            "similarity": _matrices(result, order, words, sites),
            "histograms": _histograms(result, sites),
            "comparison": _comparison(result, sites),
        }
        if member is not None:
            figures = {"groups": _mask(result, member[order], words)} | figures
    return captioned(figures, _CAPTIONS)


def _mask(
    result: RepresentationalSimilarity, member: NDArray[np.int64], words: list[str]
) -> Figure:
    side = _side(len(words))
    figure, axes = new_figure(side + 1.4, side)
    shared = np.where(member[:, None] == member[None, :], member[:, None] + 1, 0)
    colors = ListedColormap([BETWEEN, *(cycled(group) for group in range(len(result.group_names)))])
    step = ceil(len(shared) / 512)  # categories have no means: many words are thinned out
    axes.imshow(
        shared[::step, ::step], cmap=colors, vmin=-0.5, vmax=len(result.group_names) + 0.5,
        extent=_extent(len(words)),
    )  # fmt: skip
    _name_words(axes, words, member, rows=True)
    for group, name in enumerate(result.group_names):
        axes.plot([], [], "s", markersize=7, color=cycled(group), label=name)
    axes.plot([], [], "s", markersize=7, color=BETWEEN, label="two groups")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="pair within")
    axes.set_title(f"{len(words)} words in {len(result.group_names)} groups")
    axes.set(xlabel="word", ylabel="word")
    return figure


def _matrices(
    result: RepresentationalSimilarity,
    order: NDArray[np.int64],
    words: list[str],
    sites: Sequence[str],
) -> Figure:
    side = _side(len(words))
    figure, (left, right) = new_figure(2 * side + 0.4, side, ncols=2)
    off_diagonal = ~np.eye(len(words), dtype=bool)
    pairs = [matrix[off_diagonal] for matrix in (result.similarity_x, result.similarity_y)]
    # One scale for both; the diagonal, always 1, must not take the colors away from the rest.
    low, high = min(map(np.min, pairs)), max(map(np.max, pairs))
    member = None if result.membership is None else result.membership[order]
    for axes, matrix, site in (
        (left, result.similarity_x, sites[0]),
        (right, result.similarity_y, sites[1]),
    ):
        shown = block_means(np.where(off_diagonal, matrix[np.ix_(order, order)], high))
        axes.imshow(shown, vmin=low, vmax=high, cmap="viridis", extent=_extent(len(words)))
        _name_words(axes, words, member, rows=axes is left)
        if member is not None:
            for edge in np.flatnonzero(np.diff(member)) + 0.5:
                axes.axhline(edge, color="white", linewidth=1.2)
                axes.axvline(edge, color="white", linewidth=1.2)
        axes.set(xlabel="word")
        axes.set_title(site)
    left.set_ylabel("word")
    figure.set_layout_engine("compressed")  # square panels leave no gaps to fill
    label = color_label("cosine similarity (diagonal: 1)", shown, result.similarity_y)
    figure.colorbar(left.images[0], ax=[left, right], label=label, shrink=0.8)
    return figure


def _histograms(result: RepresentationalSimilarity, sites: Sequence[str]) -> Figure:
    figure, panels = new_figure(7.5, 3.2, ncols=2, sharey=True)
    kinds = _kinds(result)
    for axes, matrix, site, selectivity in (
        (panels[0], result.similarity_x, sites[0], result.selectivity_x),
        (panels[1], result.similarity_y, sites[1], result.selectivity_y),
    ):
        values = _triangle(matrix)
        edges = np.histogram_bin_edges(values, bins=min(40, max(8, int(np.sqrt(len(values))))))
        for label, chosen, color in kinds:
            if chosen.any():
                shares = np.full(chosen.sum(), 100.0 / chosen.sum())
                label = f"{label} ({chosen.sum():,})"
                axes.hist(
                    values[chosen], edges, weights=shares, color=color, alpha=0.55, label=label
                )
                axes.axvline(values[chosen].mean(), color=color, linewidth=1.4, linestyle="--")
        text = "" if selectivity is None else f": selectivity {selectivity:.3g}"
        axes.set_title(f"{site}{text}")
        axes.set_xlabel("cosine similarity (mean dashed)")
        axes.legend(title="pairs of words")
    panels[0].set_ylabel("share of these pairs (%)")
    return figure


def _comparison(result: RepresentationalSimilarity, sites: Sequence[str]) -> Figure:
    groups = len(result.group_names)
    columns = min(4, groups + 1)
    rows = ceil((groups + 1) / columns)
    layout = {"nrows": rows, "ncols": columns, "squeeze": False, "sharex": True, "sharey": True}
    figure, panels = new_figure(1.0 + 2.7 * columns, 0.5 + 2.7 * rows, **layout)
    x, y = _triangle(result.similarity_x), _triangle(result.similarity_y)
    first = panels.flat[0]
    points: dict[str, Any] = {"linewidths": 0, "rasterized": True}
    if len(x) > MAX_PAIRS:
        first.hexbin(x, y, gridsize=45, bins="log", cmap="Greys", mincnt=1, linewidths=0.1)
    else:
        for label, chosen, color in _kinds(result):
            first.scatter(x[chosen], y[chosen], 7, color=color, alpha=0.6, label=label, **points)
        if groups:
            first.legend(loc="best", markerscale=2, handletextpad=0.1, title="pairs")
    first.set_title(_headline(result))
    for group, name in enumerate(result.group_names):
        axes = panels.flat[group + 1]
        inside = result.membership == group
        chosen = _triangle(np.logical_and.outer(inside, inside))
        axes.scatter(x[chosen], y[chosen], 9, color=cycled(group), alpha=0.7, **points)
        score = result.group_scores[group]
        text = f"{SCORES[result.compare]} = {score:.2f}" if np.isfinite(score) else "no score"
        axes.set_title(f"{name}\n{text}")
    for spare in panels.flat[groups + 1 :]:
        spare.remove()
    for index, axes in enumerate(panels.flat[: groups + 1]):
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.set_xlabel(f"cosine at {sites[0]}")
        if index % columns == 0:
            axes.set_ylabel(f"cosine at {sites[1]}")
    return figure


def _headline(result: RepresentationalSimilarity) -> str:
    chance = "" if result.p_value is None else f", p = {result.p_value:.2g}"
    spread = ""
    if result.score_interval is not None:
        spread = " [{:.2f}, {:.2f}]".format(*result.score_interval)
    return f"all pairs{chance}\n{SCORES[result.compare]} = {result.score:.2f}{spread}"


def _kinds(result: RepresentationalSimilarity) -> list[tuple[str, NDArray[np.bool_], str]]:
    """Kinds of pairs in drawing order: name, mask over the triangle, color."""
    pairs = len(result.similarity_x) * (len(result.similarity_x) - 1) // 2
    if result.membership is None:
        return [("all", np.ones(pairs, dtype=bool), COLORS[0])]
    within = _triangle(result.membership[:, None] == result.membership[None, :])
    return [("between groups", ~within, MUTED), ("within a group", within, COLORS[1])]


def _triangle(matrix: NDArray[Any]) -> NDArray[Any]:
    upper: NDArray[Any] = matrix[np.triu_indices(len(matrix), 1)]
    return upper


def _name_words(axes: Axes, words: list[str], member: NDArray[np.int64] | None, rows: bool) -> None:
    """Write the words along the sides of a matrix, in their group's color."""
    shown = np.arange(0, len(words), ceil(len(words) / MAX_LABELS))
    names = [words[index] for index in shown]
    size = 7.0 if len(shown) <= 40 else 5.5
    axes.set_xticks(shown, names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(shown, names if rows else [], fontsize=size, parse_math=False)
    axes.tick_params(length=0)
    for side in ("bottom", "left"):
        axes.spines[side].set_visible(False)
    if member is not None:
        for texts in (axes.get_xticklabels(), axes.get_yticklabels()):
            for index, text in zip(shown, texts, strict=False):
                red, green, blue = to_rgb(cycled(int(member[index])))
                text.set_color((0.7 * red, 0.7 * green, 0.7 * blue))  # dark enough to read


def _extent(words: int) -> tuple[float, float, float, float]:
    return (-0.5, words - 0.5, words - 0.5, -0.5)


def _side(words: int) -> float:
    return float(np.clip(1.6 + 0.11 * words, 3.2, 8.0))
