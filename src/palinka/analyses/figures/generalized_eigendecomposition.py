"""Figures of the generalized eigendecomposition."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from palinka.analyses.figures import style
from palinka.analyses.generalized_eigendecomposition import GeneralizedEigendecomposition as Result
from palinka.analyses.generalized_eigendecomposition import generalized_eigendecomposition as solve
from palinka.analyses.result import Array, Mask, as_float64
from palinka.analyses.stats.eigenvalue_null import HALVES
from palinka.analyses.stats.similarity import Indices
from palinka.errors import InputError

# Maximum number of characters of an item's name; of components of a spectrum; of blocks of units
# along a covariance.
MAX_LABEL_LENGTH, MAX_COMPONENTS, MAX_BLOCKS = 54, 20, 64
# Frames that are drawn if none are asked for; more tokens than this are not named.
MAX_FRAMES, MAX_TOKENS = 3, 40
# Versions of one frame differ in no more tokens than this in either.
_MAX_TARGET_TOKENS = 3

Names = Sequence[str]
# The tokens of a text and the scores of each in both directions, `(tokens,)`.
TokenSeries = tuple[Names, Array, Array]


@style.captioned(
    spectrum="The eigenvalues of both directions, ratios of the variances of the conditions, as "
    "shares of the largest. Shaded, where it was computed, is its range under exchanged labels; "
    "what is tested, in components found without the labels, differs a little from `eigenvalue`.",
    variance="The share of the activations' variance in the principal components among which the "
    "directions were found.",
    scores="The items along the leading directions, each condition about its own mean. Where one "
    "spreads and the other does not, the direction holds for the items that it was found in; only "
    "the held-out ratio is about others.",
    patterns="The change of each unit along the leading directions. A high r means that the same "
    "units, often those of most variance, make up both, not that the directions are one: within a "
    "condition, scores along two directions of different ratios are nearly uncorrelated.",
    null="The largest eigenvalue beside those of exchanged labels, within pairs where the items "
    "are matched: how often chance finds as much. The held-out ratio is the geometric mean over "
    "halves of the items, with its range over them, which is not a confidence interval.",
    data="The activations of both conditions in the units that the leading direction changes most.",
    covariances="The covariances of both conditions, which the directions compare, of units in the "
    "order of the leading pattern, and of the principal components that are kept.",
    shuffled="The same analysis with the items' labels exchanged once, within pairs where the "
    "items are matched, after each condition was centered on its mean: what a spectrum and scores "
    "look like where the conditions do not differ in variance.",
    series="The scores token by token along texts of both conditions. Zero is halfway between the "
    "means of the items, and that of the first condition is above it. Single texts can differ.",
)
def generalized_eigendecomposition(
    result: Result, *, a: ArrayLike | None = None, b: ArrayLike | None = None,
    conditions: Names = ("a", "b"), items: Names | None = None, units: str = "units",
    texts: Iterable[tuple[Names, ArrayLike]] | None = None, series: Sequence[int] = (),
    seed: int = 0, **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw the spectra, the leading components and what they were found in.

    `a`, `(n_a, d)`, and `b`, `(n_b, d)`, are the activations of the `conditions`, whose `items`,
    those of `a` first, and whose columns, the `units`, have names. `texts` are the tokens of each
    item's text and their activations, `(tokens, d)`, of which those numbered `series` are drawn, by
    default the first; `seed` draws the shuffled labeling. Without `a` and `b` there are no `data`,
    `covariances`, `shuffled` and `series`.
    """
    figures = {} if result.null_a is None else {"null": _null(result, conditions)}
    figures["spectrum"] = _spectrum(result, conditions)
    items_a = len(result.scores_a) if a is None else np.shape(a)[0]
    first = np.arange(len(result.scores_a)) < items_a
    groups = [first] if first.all() else [first, ~first]
    figures["scores"] = _scores(result, conditions, groups, items)
    figures["patterns"] = _patterns(result, conditions, units)
    figures["variance"] = _variance(result)
    if a is None or b is None:
        return figures
    both = as_float64(a, "a"), as_float64(b, "b")
    order = np.argsort(-result.pattern_a, kind="stable")
    order = order[np.ptp(np.concatenate(both), axis=0)[order] > 0]  # many latents are never active
    named = dict(zip(conditions, both, strict=True))
    figures["data"] = style.draw_activations(named, order, units, "pattern", items)
    pattern = "{} over {}".format(*conditions)
    style.headline(figures["data"], f"All items in the {units} of the pattern of {pattern}")
    figures["covariances"] = _covariances(both, result.components, order, conditions, units)
    # Without shrinkage, a shuffled labeling can leave no covariance to invert.
    with contextlib.suppress(InputError):
        figures["shuffled"] = _shuffled(result, both, conditions, seed)
    if texts is not None:
        # From halfway between the conditions, towards the first.
        scores = np.stack([result.scores_a, result.scores_b], axis=1)
        middle = [scores[members].mean(axis=0) for members in (first, ~first)]
        signs = np.where(middle[0] < middle[1], -1.0, 1.0)
        zero = np.mean(middle, axis=0)
        every = [(tokens, *(signs * (result.project(x) - zero)).T) for tokens, x in texts]
        figures["series"] = draw_series(every, len(both[0]), conditions, series)
    return figures


@style.captioned(
    sites="The largest eigenvalue of both directions at each site, and, where it was computed, the "
    "variance ratio in held-out halves (geometric mean, and the range over splits, which is not a "
    "confidence interval): near 1, the direction does not hold for other items.",
)
def overview(
    results: Mapping[str, Result], conditions: Names = ("a", "b"), **context: Any
) -> dict[str, Figure]:
    """Draw `sites`, the leading eigenvalues and held-out variance ratios at every site."""
    tested = all(result.heldout_ratio_a is not None for result in results.values())
    layout: dict[str, Any] = {"ncols": 1 + tested, "squeeze": False, "sharey": True}
    figure, panels = style.new_figure(style.WIDTH, 1.4 + 0.25 * len(results), **layout)
    first, *others = panels[0]
    for index, (name, direction, look, _) in enumerate(_directions(conditions)):
        places = np.arange(len(results)) + (-0.15, 0.15)[index]
        leading = [getattr(result, f"eigenvalues_{name}")[0] for result in results.values()]
        first.plot(leading, places, linestyle="", label=direction, **look)
        for axes in others:
            found = [getattr(result, f"heldout_ratio_{name}") for result in results.values()]
            mean, low, high = np.transpose(found)
            axes.plot(mean, places, linestyle="", **look)
            axes.hlines(places, low, high, color=look["color"])
    first.set(xscale="log", xlabel="largest eigenvalue\n(variance ratio)")
    first.set_yticks(np.arange(len(results)), list(results), parse_math=False)
    first.invert_yaxis()
    for axes in others:
        style.mark(axes, x=1.0)
        axes.set(xscale="log", xlabel=f"held-out ratio\n(bar: range over\n{HALVES} splits)")
    for axes in panels[0]:
        style.plain_log(axes.xaxis)
    figure.legend(loc="outside lower right", ncols=2)
    style.headline(figure, "Ratio of the variances of {} and {} by site".format(*conditions))
    return {"sites": figure}


def _directions(names: Names) -> list[tuple[str, str, dict[str, Any], str]]:
    """Field suffix, title, look and score unit of each direction."""
    return [
        ("ab"[i], f"{names[i]} over {names[1 - i]}", style.look(i), f"(sd of {names[1 - i]})")
        for i in range(2)
    ]


def _largest(result: Result, name: str) -> float:
    """The largest eigenvalue: the one that was tested, if any was."""
    observed = getattr(result, f"observed_{name}")
    return float(getattr(result, f"eigenvalues_{name}")[0] if observed is None else observed)


def _heldout(result: Result, name: str) -> str:
    r = getattr(result, f"heldout_ratio_{name}")
    text = "\nheld out {:.3g} (range over {n} splits: {:.3g} to {:.3g})"
    return "" if r is None else text.format(*r, n=HALVES)


def _spectrum(result: Result, names: Names) -> Figure:
    figure, panels = style.new_figure(style.WIDTH, 2.6, ncols=2, sharey=True)
    tested = result.null_a is not None
    for axes, (name, direction, look, _) in zip(panels, _directions(names), strict=True):
        values = getattr(result, f"eigenvalues_{name}")
        shown = values[:MAX_COMPONENTS] / values[0]
        axes.plot(np.arange(1, len(shown) + 1), shown, ms=3, **look)
        null, largest = getattr(result, f"null_{name}"), _largest(result, name)
        if null is not None:
            low, high = np.quantile(null[np.isfinite(null)], [0.025, 0.975]) / largest
            axes.axhspan(low, high, color=style.MUTED, alpha=0.4, linewidth=0)
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.set(xlabel="component", ylim=(-0.03, max(1.05, axes.get_ylim()[1])))
        axes.set_title(f"{direction}\nlargest{', as tested' * tested}: {largest:.4g}")
    panels[0].set_ylabel("eigenvalue (largest = 1)")
    gray = " (gray: the largest under exchanged labels, 95 % of draws)" * tested
    few = f"the first {len(shown)} of {len(values)} components"
    style.headline(figure, f"Variance ratios of {few}{gray}")
    return figure


def _variance(result: Result) -> Figure:
    cumulative, kept = result.variance_explained, result.components.shape[1]
    numbers = np.arange(1, len(cumulative) + 1)
    figure, (scree, sums) = style.new_figure(style.WIDTH, 3.8, nrows=2, sharex=True)
    shares = np.diff(cumulative, prepend=0.0)
    some = shares > 1e-10  # beyond it are the zeros of a spectrum shorter than the data
    scree.plot(numbers[some], shares[some], "o-", ms=2.5)
    scree.set(yscale="log", ylabel="variance of each (%)")
    style.plain_log(scree.yaxis)
    sums.plot(numbers, cumulative, "o-", ms=2.5)
    sums.axhline(result.variance, color="black", linewidth=0.8, linestyle="--")
    sums.set(ylabel="cumulative variance (%)", ylim=(min(cumulative[0], 90.0) - 2.0, 101.0))
    for axes in (scree, sums):
        axes.axvspan(0.5, kept + 0.5, color=style.COLORS[5], alpha=0.18, linewidth=0, zorder=0)
        axes.locator_params(axis="x", integer=True)
    sums.set_xlabel("principal component (shaded: kept)")
    style.headline(figure, f"{kept} principal components stay below {result.variance:g} % (dashed)")
    return figure


def _patterns(result: Result, names: Names, units: str) -> Figure:
    figure, axes = style.new_figure(style.WIDTH, 3.3)
    patterns = result.pattern_a, result.pattern_b
    style.draw_points(axes, *patterns)
    style.mark(axes, x=0.0, y=0.0)
    style.name_points(axes, *patterns, [u for p in patterns for u in style.extremes(p)])
    xlabel, ylabel = (f"pattern, {title} (activation)" for _, title, *_ in _directions(names))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    r = f"r = {result.pattern_correlation:.3f} over {units}, not of the directions"
    style.headline(figure, f"How each of {len(patterns[0]):,} {units} changes along both: {r}")
    return figure


def _null(result: Result, names: Names) -> Figure:
    figure, panels = style.new_figure(style.WIDTH, 4.4, nrows=2)
    for axes, (name, direction, *_) in zip(panels, _directions(names), strict=True):
        null, observed = getattr(result, f"null_{name}"), _largest(result, name)
        style.draw_null(axes, null, observed, "labels exchanged")
        title = f"{direction}: {observed:.4g}, p = {getattr(result, f'p_value_{name}'):.3g}"
        axes.set(title=title + _heldout(result, name), ylabel=f"draws, of {len(null):,}")
    panels[1].set_xlabel("largest eigenvalue (variance ratio)")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    style.headline(figure, "The largest eigenvalue, and those of exchanged labels")
    return figure


def _scores(result: Result, names: Names, groups: Sequence[Mask], items: Names | None) -> Figure:
    figure, panels = style.new_figure(style.WIDTH, 4.8 if items else 3.8, nrows=2)
    for axes, (name, title, _, unit) in zip(panels, _directions(names), strict=True):
        scores = _centered(getattr(result, f"scores_{name}"), groups)
        _draw_stems(axes, scores, groups, names)
        title += f": in-sample ratio {_largest(result, name):.4g}{_heldout(result, name)}"
        axes.set(title=title, ylabel=f"GED score, centered\n{unit}", xlabel="item")
        if items:
            strongest = np.argsort(-np.abs(scores), kind="stable")[: style.NAMED]
            style.name_points(axes, np.arange(len(scores)), scores, strongest)
            lines = [f"{i}: {style.shortened(items[i], MAX_LABEL_LENGTH)}" for i in strongest]
            axes.set_xlabel("\n".join(["item", *lines]), loc="left", fontsize=6.5)
    if len(groups) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    style.headline(figure, "Spread of the items along both directions (in-sample)")
    return figure


def _centered(scores: Array, groups: Sequence[Mask]) -> Array:
    """Scores about the mean of each condition: directions differ in variance, not in means."""
    return np.asarray(scores - sum(scores[group].mean() * group for group in groups))


def _draw_stems(axes: Axes, scores: Array, groups: Sequence[Mask], names: Names) -> None:
    style.mark(axes, y=0.0)
    for chosen, label, (*_, look, _) in zip(groups, names, _directions(names), strict=False):
        x, y = np.flatnonzero(chosen), scores[chosen]
        axes.vlines(x, 0.0, y, color=look["color"], linewidth=0.6, alpha=0.6)
        axes.plot(x, y, linestyle="", ms=2.5, label=label, **look)


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
    shuffled_a, shuffled_b, order = permuted_labels(*both, result.pairs, seed)
    other = solve(shuffled_a, shuffled_b, result.variance, result.shrinkage)
    figure, panels = style.new_figure(style.WIDTH, 4.6, nrows=3, ncols=2, sharey="row")
    true = "True labels", result, np.arange(len(order))
    chance = "Exchanged", other, np.argsort(order)  # back to the items' own order
    for (spectrum, *rows), (title, each, take) in zip(panels.T, (true, chance), strict=True):
        for axes, (name, direction, look, unit) in zip(rows, _directions(names), strict=True):
            eigenvalues = getattr(each, f"eigenvalues_{name}")[:MAX_COMPONENTS]
            numbers = np.arange(1, len(eigenvalues) + 1)
            spectrum.plot(numbers, eigenvalues, ms=2.5, label=direction, **look)
            own = np.arange(len(take)) < len(both[0])
            scores = _centered(getattr(each, f"scores_{name}"), [own, ~own])[take]
            _draw_stems(axes, scores, [own[take], ~own[take]], names)
            axes.set(title=direction, ylabel=f"score\n{unit}" if each is result else "")
        spectrum.set(title=title, xlabel="component")
        axes.set_xlabel("item")
    panels[0, 0].set_ylabel("variance ratio")
    panels[0, 1].legend()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    style.headline(figure, "The same analysis of true and of once exchanged labels")
    return figure


def _covariances(
    both: tuple[Array, Array], components: Array, order: Indices, names: Names, units: str
) -> Figure:
    """The covariances of both conditions and their difference, before and after the PCA.

    Many columns are shown by the exact mean of every block of the covariance, which is the
    covariance of the blocks' means: no matrix of all columns by all columns is formed.
    """
    figure, panels = style.new_figure(style.WIDTH, 5.6, nrows=3, ncols=2)
    titles = (*names, f"{names[0]} - {names[1]}")
    projected = [x @ components for x in both]
    # Units count from zero, components from one.
    columns = ([x[:, order] for x in both], units, -0.5), (projected, "principal components", 0.5)
    for column, (data, label, start) in zip(panels.T, columns, strict=True):
        end = start + data[0].shape[1]
        first, second = (np.atleast_2d(np.cov(_blocks(x), rowvar=False)) for x in data)
        # The diagonal may saturate.
        limit = style.color_limit(np.concatenate((first, second)), 0.99)
        options = {"extent": (start, end, end, start), "vmin": -limit, "vmax": limit}
        for axes, image, title in zip(column, (first, second, first - second), titles, strict=True):
            drawn = axes.imshow(image, cmap=style.DIVERGING, **options)
            axes.set(title=title, ylabel=label)
        bar: dict[str, Any] = {"location": "bottom", "extend": "both", "pad": 0.01}
        bar |= {"ticks": (-limit, 0.0, limit), "format": "%.2g"}
        blocks = " (blocks)" if len(first) < end - start else ""
        figure.colorbar(drawn, ax=column, label=f"covariance{blocks}", **bar)
    style.headline(figure, f"Covariances of {units}, by their pattern, and after the PCA")
    return figure


def _blocks(x: Array) -> Array:
    """Means over blocks of neighboring columns, at most `MAX_BLOCKS`."""
    edges = np.linspace(0, x.shape[1], min(x.shape[1], MAX_BLOCKS) + 1).astype(int)
    return np.add.reduceat(x, edges[:-1], axis=1) / np.diff(edges)


def draw_series(
    series: Sequence[TokenSeries], n_a: int, names: Names, wanted: Sequence[int] = ()
) -> Figure:
    """Draw texts' scores in both directions, the `wanted` or the first ones.

    `n_a` texts are of the first condition. Where text `i` of either condition is the same frame
    with another target, the two are drawn over each other, and their corresponding tokens are
    joined. Other texts stand alone.
    """
    pairs = [(i, n_a + i) for i in range(n_a)] if len(series) == 2 * n_a else []
    frames = [(i, j) for i, j in pairs if corresponding(series[i][0], series[j][0])]
    every: list[tuple[int, ...]] = [*frames, *((text,) for text in range(len(series)))]
    first = [i for i, _ in frames[:MAX_FRAMES]] or [*range(n_a)[:2], *range(n_a, len(series))[:2]]
    groups = [next(group for group in every if text in group) for text in wanted or first]
    most = min(max(len(series[text][0]) for group in groups for text in group), MAX_TOKENS)
    width, rows = max(style.WIDTH, 0.7 + 0.16 * most), 2 * len(groups)
    figure, panels = style.new_figure(width, 0.6 + 0.95 * rows, nrows=rows)
    for direction, (_, title, _, unit) in enumerate(_directions(names)):
        for axes, group in zip(panels[direction::2], groups, strict=True):
            texts = [series[text] for text in group]
            _draw_group(axes, texts, [int(text >= n_a) for text in group], direction)
            axes.set(title=title, ylabel=f"score\n{unit}")
            # Models single out the first token with huge activations.
            later = np.concatenate([each[1 + direction][1:] for each in texts])
            if len(later):
                low, high = min(later.min(), 0.0), max(later.max(), 0.0)
                margin = 0.08 * (high - low) or 1.0
                axes.set_ylim(low - margin, high + margin)
            if direction == 0:
                axes.tick_params(labelbottom=False)
    for name, (*_, look, _) in zip(names, _directions(names), strict=True):
        panels[0].plot([], [], linestyle="", label=name, **look)
    style.legend_above(panels[0], columns=2)
    signs = "signs so that the mean of {} is above that of {}".format(*names)
    style.headline(figure, f"Every token along both directions; {signs}")
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
    axes: Axes, texts: Sequence[TokenSeries], conditions: Sequence[int], direction: int
) -> None:
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
    for place, scores, condition in zip(places, values, conditions, strict=True):
        look, line = style.look(condition), "-:"[condition]
        axes.plot(place, scores, line, ms=3.5 - condition, linewidth=1.0, **look)
    style.mark(axes, y=0.0)
    axes.set_xlim(-0.6, length - 0.4)
    if length <= MAX_TOKENS:
        slanted: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(length), labels, fontsize=6.5, parse_math=False, **slanted)
    else:
        axes.set_xlabel("token")
