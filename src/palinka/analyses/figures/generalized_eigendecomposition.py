"""Figures of the generalized eigendecomposition."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from palinka.analyses.figures import style
from palinka.analyses.generalized_eigendecomposition import GeneralizedEigendecomposition as Result
from palinka.analyses.generalized_eigendecomposition import generalized_eigendecomposition as solve
from palinka.analyses.result import Array, Mask, as_float64
from palinka.analyses.stats.similarity import Indices
from palinka.errors import InputError

# Maximum number of items that are named beside an axis, and of characters of a name.
MAX_LABELS, MAX_LABEL_LENGTH = 60, 48
# More frames than this are not drawn; more tokens than this are not named.
MAX_FRAMES, MAX_TOKENS = 6, 40
# Versions of one frame differ in no more tokens than this in either.
_MAX_TARGET_TOKENS = 3

Names = Sequence[str]
# The tokens of a text and the scores of each in both directions, `(tokens,)`.
TokenSeries = tuple[Names, Array, Array]


@style.captioned(
    spectrum="The eigenvalues of both directions, each as a share of its largest: ratios of the "
    "variance of one condition to that of the other. A steep fall means that few directions make "
    "the difference.",
    variance="The share of the activations' variance in the principal components among which the "
    "directions were found.",
    scores="The items along the leading directions. Where one condition is spread out and the "
    "other is not, the direction holds for the items that it was found in.",
    patterns="The change of each unit along the leading directions.",
    null="The largest eigenvalue beside those of exchanged labels, within pairs where the items "
    "are matched: how often chance finds as much. The held-out ratio is the geometric mean over "
    "halves of the items.",
    data="The activations of both conditions, items by units, as they were analyzed.",
    covariances="The covariances of both conditions, which the directions compare.",
    shuffled="The same analysis with the items' labels exchanged once, within pairs where the "
    "items are matched, after each condition was centered on its mean: what a spectrum and scores "
    "look like where the conditions do not differ in variance.",
    series="The leading directions' scores token by token along the texts of both conditions.",
)
def generalized_eigendecomposition(
    result: Result, *, a: ArrayLike | None = None, b: ArrayLike | None = None,
    conditions: Names = ("a", "b"), items: Names | None = None, units: str = "units",
    texts: Iterable[tuple[Names, ArrayLike]] | None = None, seed: int = 0, **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw the spectra, the leading components and what they were found in.

    `a`, `(n_a, d)`, and `b`, `(n_b, d)`, are the activations of the `conditions`, whose `items`,
    those of `a` first, and whose columns, the `units`, have names. `texts` are the tokens of each
    item's text and their activations, `(tokens, d)`; `seed` draws the shuffled labeling. Without
    `a` and `b` there are no `data`, `covariances`, `shuffled` and `series`.
    """
    figures = {"spectrum": _spectrum(result, conditions), "variance": _variance(result)}
    figures["patterns"] = _patterns(result, conditions, units)
    if result.null_a is not None:
        figures["null"] = _null(result, conditions)
    if a is None or b is None:
        figures["scores"] = _scores(result, conditions, None, None)
        return figures
    both = as_float64(a, "a"), as_float64(b, "b")
    first = np.arange(len(result.scores_a)) < len(both[0])
    figures["scores"] = _scores(result, conditions, first, items)
    figures["data"] = _data(both, conditions, units)
    figures["covariances"] = _covariances(both, result.components, conditions, units)
    # Without shrinkage, a shuffled labeling can leave no covariance to invert.
    with contextlib.suppress(InputError):
        figures["shuffled"] = _shuffled(result, both, conditions, seed)
    if texts is not None:
        series = [(tokens, *result.project(acts).T) for tokens, acts in texts]
        figures["series"] = draw_series(series, len(both[0]), conditions)
    return figures


@style.captioned(
    sites="The largest eigenvalue of both directions at each site, and, where it was computed, the "
    "variance ratio in held-out halves (geometric mean and central 95 %): near 1, the direction "
    "does not hold for other items.",
)
def overview(
    results: Mapping[str, Result], conditions: Names = ("a", "b"), **context: Any
) -> dict[str, Figure]:
    """Draw `sites`, the leading eigenvalues and held-out variance ratios at every site."""
    tested = all(result.heldout_ratio_a is not None for result in results.values())
    width, height = 8.0 if tested else 4.5, 1.2 + 0.3 * len(results)
    figure, panels = style.new_figure(width, height, ncols=1 + tested, squeeze=False, sharey=True)
    first, *others = panels[0]
    for index, (name, direction, color, _) in enumerate(_directions(conditions)):
        places = np.arange(len(results)) + (-0.12, 0.12)[index]
        leading = [getattr(result, f"eigenvalues_{name}")[0] for result in results.values()]
        first.plot(leading, places, "o", color=color, label=direction)
        for axes in others:
            found = [getattr(result, f"heldout_ratio_{name}") for result in results.values()]
            mean, low, high = np.transpose(found)
            axes.plot(mean, places, "o", color=color)
            axes.hlines(places, low, high, color=color)
    first.set(xscale="log", xlabel="largest eigenvalue (variance ratio)")
    first.set_yticks(np.arange(len(results)), list(results), parse_math=False)
    first.invert_yaxis()
    first.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    for axes in others:
        style.mark(axes, x=1.0)
        axes.set(xscale="log", xlabel="held-out variance ratio (95 % of halves)")
    return {"sites": figure}


def _directions(names: Names) -> list[tuple[str, str, str, str]]:
    """Field suffix, title, color and score label of each direction."""
    return [
        (ending, f"{more} over {less}", color, f"score (SD in {less})")
        for ending, more, less, color in zip("ab", names, names[::-1], style.COLORS, strict=False)
    ]


def _spectrum(result: Result, names: Names) -> Figure:
    figure, axes = style.new_figure(5.6, 3.6)
    numbers = np.arange(1, len(result.eigenvalues_a) + 1)
    for (name, direction, color, _), marker in zip(_directions(names), "os", strict=True):
        values = getattr(result, f"eigenvalues_{name}")
        label = f"{direction} (largest: {values[0]:.4g})"
        axes.plot(numbers, values / values[0], f"{marker}-", color=color, label=label, ms=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="generalized component", ylabel="eigenvalue (largest = 1)", ylim=(-0.03, 1.05))
    axes.set_title(f"Variance ratios in {len(numbers)} principal components")
    axes.legend()
    return figure


def _variance(result: Result) -> Figure:
    cumulative, kept = result.variance_explained, result.components.shape[1]
    numbers = np.arange(1, len(cumulative) + 1)
    figure, (scree, sums) = style.new_figure(8.0, 3.4, ncols=2, sharex=True)
    shares = np.diff(cumulative, prepend=0.0)
    some = shares > 1e-10  # beyond it are the zeros of a spectrum shorter than the data
    scree.plot(numbers[some], shares[some], "o-", ms=3)
    scree.set(yscale="log", ylabel="variance of the component (%)", title="Scree")
    sums.plot(numbers, cumulative, "o-", ms=3)
    style.mark(sums, y=result.variance)
    sums.set(ylabel="cumulative variance (%)", ylim=(min(cumulative[0], 90.0) - 2.0, 101.0))
    sums.set_title(f"{kept} components stay below {result.variance:g} %")
    for axes in (scree, sums):
        axes.axvspan(0.5, kept + 0.5, color=style.COLORS[5], alpha=0.18, linewidth=0, zorder=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("principal component (shaded: kept)")
    return figure


def _patterns(result: Result, names: Names, units: str) -> Figure:
    figure, axes = style.new_figure(4.6, 4.4)
    style.draw_points(axes, result.pattern_a, result.pattern_b)
    style.mark(axes, x=0.0, y=0.0)
    xlabel, ylabel = (f"pattern, {title} (activation)" for _, title, *_ in _directions(names))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(f"r = {result.pattern_correlation:.3f} over {len(result.pattern_a):,} {units}")
    return figure


def _null(result: Result, names: Names) -> Figure:
    figure, panels = style.new_figure(8.0, 3.4, ncols=2, sharey=True)
    for axes, (name, direction, color, _) in zip(panels, _directions(names), strict=True):
        null, observed = getattr(result, f"null_{name}"), getattr(result, f"observed_{name}")
        finite = null[np.isfinite(null)]  # a labeling can leave a condition without variance
        bins = min(40, max(5, len(null) // 10))
        axes.hist(finite, bins=bins, color=style.MUTED, label="shuffled")
        axes.axvline(observed, color=color, linewidth=2, label=f"observed: {observed:.4g}")
        axes.set_xlabel("largest eigenvalue (variance ratio)")
        title = f"{direction}: p = {getattr(result, f'p_value_{name}'):.3g}"
        ratio = getattr(result, f"heldout_ratio_{name}")
        if ratio is not None:
            title += "\nheld-out ratio {:.3g} (95 %: {:.3g} to {:.3g})".format(*ratio)
        axes.set_title(title)
        axes.legend()
    panels[0].set_ylabel(f"labelings, of {len(null):,}")
    return figure


def _scores(result: Result, names: Names, first: Mask | None, items: Names | None) -> Figure:
    """Both leading components by item, of which `first` are of the first condition, if known."""
    labels = [
        item if len(item) <= MAX_LABEL_LENGTH else item[: MAX_LABEL_LENGTH - 1] + "…"
        for item in items or ()
    ]
    count = len(result.scores_a)
    named = len(labels) == count <= MAX_LABELS
    if named:
        size = 7.0 + 0.05 * max(map(len, labels)), 1.2 + 0.13 * count
        figure, panels = style.new_figure(*size, ncols=2, sharey=True)
        panels[0].set_yticks(range(count), labels, fontsize=6, parse_math=False)
        panels[0].set_ylim(count - 0.4, -0.6)
    else:
        figure, panels = style.new_figure(8.5, 4.6, nrows=2, sharex=True)
        panels[1].set_xlabel("item")
    for axes, (name, title, _, label) in zip(panels, _directions(names), strict=True):
        _draw_stems(axes, getattr(result, f"scores_{name}"), first, names, upright=not named)
        axes.set(title=title, **{"xlabel" if named else "ylabel": label})
    style.legend_above(panels[0], columns=2)
    return figure


def _draw_stems(
    axes: Axes, scores: Array, first: Mask | None, names: Names, upright: bool = True
) -> None:
    """A point on a stem for each item, in the color of its condition."""
    places = np.arange(len(scores))
    style.mark(axes, **{"y" if upright else "x": 0.0})
    stems = axes.vlines if upright else axes.hlines
    groups = [first, ~first] if first is not None else [np.full(len(scores), True)]
    labels = names if first is not None else (None, None)
    for chosen, color, label in zip(groups, style.COLORS, labels, strict=False):
        stems(places[chosen], 0.0, scores[chosen], color=color, linewidth=0.7, alpha=0.6)
        x, y = (places, scores) if upright else (scores, places)
        axes.plot(x[chosen], y[chosen], "o", color=color, ms=3, label=label)


def permuted_labels(a: Array, b: Array, pairs: bool, seed: int) -> tuple[Array, Array, Indices]:
    """Items labeled A and B by one draw of the null, and the index of each among all."""
    rng = np.random.default_rng(seed)
    if pairs:
        own = np.arange(2 * len(a)).reshape(2, -1)
        order = np.where(rng.random(len(a)) < 0.5, own, own[::-1]).ravel()
    else:
        order = rng.permutation(len(a) + len(b))
    x = np.concatenate((a - a.mean(axis=0), b - b.mean(axis=0)))[order]
    return x[: len(a)], x[len(a) :], order


def _shuffled(result: Result, both: tuple[Array, Array], names: Names, seed: int) -> Figure:
    """The true labeling in the left column, a shuffled one in the right."""
    shuffled_a, shuffled_b, order = permuted_labels(*both, result.pairs, seed)
    other = solve(shuffled_a, shuffled_b, result.variance, result.shrinkage)
    figure, panels = style.new_figure(9.0, 7.0, nrows=3, ncols=2, sharey="row")
    true = "True labels", result, np.arange(len(order))
    chance = "One shuffled labeling", other, np.argsort(order)  # back to the items' own order
    for (spectrum, *rows), (title, each, take) in zip(panels.T, (true, chance), strict=True):
        for axes, (name, direction, color, label) in zip(rows, _directions(names), strict=True):
            eigenvalues = getattr(each, f"eigenvalues_{name}")
            numbers = np.arange(1, len(eigenvalues) + 1)
            spectrum.plot(numbers, eigenvalues, "o-", ms=3, color=color, label=direction)
            scores = getattr(each, f"scores_{name}")[take]
            _draw_stems(axes, scores, take < len(both[0]), names)
            axes.set(title=direction, ylabel=label if each is result else "")
        spectrum.set(title=title, xlabel="generalized component")
        axes.set_xlabel("item, colored by its label")
    panels[0, 0].set_ylabel("eigenvalue (variance ratio)")
    panels[0, 1].legend()
    style.legend_above(panels[1, 1], columns=2)
    return figure


def _data(both: tuple[Array, Array], names: Names, units: str) -> Figure:
    """All items by all columns, the first condition above the second."""
    x, edge = np.concatenate(both), len(both[0]) - 0.5
    figure, axes = style.new_figure(8.0, 4.4)
    style.draw_activations([axes], [x], units)
    axes.axhline(edge, color="black", linewidth=1)
    centers = [(edge - 0.5) / 2, (edge + len(x) - 0.5) / 2]
    axes.set_yticks(centers, names, rotation=90, va="center", parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set(ylabel=f"items ({len(x)})", title="Activations by item")
    return figure


def _covariances(both: tuple[Array, Array], components: Array, names: Names, units: str) -> Figure:
    """The covariances of both conditions and their difference, before and after the PCA.

    Many columns are shown by the exact mean of every block of the covariance, which is the
    covariance of the blocks' means: no matrix of all columns by all columns is formed.
    """
    figure, panels = style.new_figure(9.6, 6.0, nrows=2, ncols=3)
    titles = (*names, f"{names[0]} - {names[1]}")
    projected = [x @ components for x in both]
    # Units count from zero, components from one.
    rows = (both, style.number_of(units), -0.5), (projected, "principal component", 0.5)
    for row, (data, label, start) in zip(panels, rows, strict=True):
        end = start + data[0].shape[1]
        first, second = (np.atleast_2d(np.cov(_blocks(x), rowvar=False)) for x in data)
        # The diagonal may saturate.
        limit = style.color_limit(np.concatenate((first, second)), 0.99)
        options = {"extent": (start, end, end, start), "vmin": -limit, "vmax": limit}
        for axes, image, title in zip(row, (first, second, first - second), titles, strict=True):
            drawn = axes.imshow(image, cmap=style.DIVERGING, **options)
            axes.set(title=title, xlabel=label)
        row[0].set_ylabel(label)
        what = "covariance" if end - start <= style.MAX_SIDE else "covariance (means of blocks)"
        figure.colorbar(drawn, ax=row, label=what, extend="both", shrink=0.8)
    return figure


def _blocks(x: Array) -> Array:
    """Means over blocks of neighboring columns; items are left as they are."""
    side = style.MAX_SIDE
    parts = (x[start : start + side] for start in range(0, len(x), side))
    return np.concatenate([style.block_means(part, side) for part in parts])


def draw_series(series: Sequence[TokenSeries], n_a: int, names: Names) -> Figure:
    """Draw the first texts' scores in both directions; `n_a` texts are of the first condition.

    Where text `i` of either condition is the same frame with another target, the two are drawn
    over each other, and their corresponding tokens are joined. Other texts stand alone.
    """
    pairs = [(i, n_a + i) for i in range(n_a)] if len(series) == 2 * n_a else []
    groups: Sequence[tuple[int, ...]] = [
        (i, j) for i, j in pairs if corresponding(series[i][0], series[j][0])
    ][:MAX_FRAMES]
    if not groups:
        half = MAX_FRAMES // 2
        groups = [(text,) for text in (*range(n_a)[:half], *range(n_a, len(series))[:half])]
    most = min(max(len(series[text][0]) for group in groups for text in group), MAX_TOKENS)
    width, height = max(8.0, 0.4 * most), 0.4 + 1.55 * len(groups)
    layout = {"nrows": len(groups), "ncols": 2, "squeeze": False, "sharey": "col"}
    figure, panels = style.new_figure(width, height, **layout)
    for direction, (_, title, _, label) in enumerate(_directions(names)):
        column = panels[:, direction]
        for axes, group in zip(column, groups, strict=True):
            colors = [style.COLORS[int(text >= n_a)] for text in group]
            _draw_group(axes, [series[text] for text in group], colors, direction)
            axes.set_ylabel(label, fontsize="small")
        # Models single out the first token with huge activations.
        later = np.concatenate([series[text][1 + direction][1:] for g in groups for text in g])
        if len(later):
            low, high = min(later.min(), 0.0), max(later.max(), 0.0)
            margin = 0.08 * (high - low) or 1.0
            column[0].set_ylim(low - margin, high + margin)  # shared by the column
        column[0].set_title(title)
    for name, color in zip(names, style.COLORS, strict=False):
        panels[0, 1].plot([], [], "o-", color=color, label=name)
    style.legend_above(panels[0, 1], columns=2)
    return figure


def corresponding(first: Sequence[str], second: Sequence[str]) -> tuple[int, int] | None:
    """Numbers of tokens that versions of a frame share before and after the target, or None."""
    shorter = min(len(first), len(second))
    before = next((i for i in range(shorter) if first[i] != second[i]), shorter)
    rest = shorter - before
    after = next((i for i in range(rest) if first[-1 - i] != second[-1 - i]), rest)
    if max(len(first), len(second)) - before - after > _MAX_TARGET_TOKENS or before + after == 0:
        return None
    return before, after


def _draw_group(
    axes: Axes, texts: Sequence[TokenSeries], colors: Sequence[str], direction: int
) -> None:
    """One text, or two versions of one, with their tokens along the axis."""
    labels = max((list(tokens) for tokens, *_ in texts), key=len)
    length = len(labels)
    places = [np.arange(len(tokens), dtype=float) for tokens, *_ in texts]
    values = [scores[direction] for _, *scores in texts]
    if len(texts) == 2:
        tokens, others = texts[0][0], texts[1][0]
        before, after = corresponding(tokens, others) or (0, 0)
        for place in places:  # What follows the target stands at the same place in both versions.
            place[len(place) - after :] += length - len(place)
        if len(tokens) == len(others) == before + 1 + after:
            labels[before] = f"{tokens[before]}/{others[before].strip()}"
        joined = [*range(before + 1), *range(-after, 0)] if before < length else range(length)
        for token in joined:
            if token < min(len(tokens), len(others)):
                ends = ([one[token] for one in of_both] for of_both in (places, values))
                axes.plot(*ends, color=style.MUTED, linewidth=0.8, zorder=1)
        target = before - 0.5, length - after - 0.5
        axes.axvspan(*target, color=style.COLORS[4], alpha=0.2, linewidth=0)
    for place, scores, color in zip(places, values, colors, strict=True):
        axes.plot(place, scores, "o-", color=color, ms=3, linewidth=1.0)
    style.mark(axes, y=0.0)
    axes.set_xlim(-0.6, length - 0.4)
    if length <= MAX_TOKENS:
        slanted: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(length), labels, fontsize=6.5, parse_math=False, **slanted)
    else:
        axes.set_xlabel("token")
