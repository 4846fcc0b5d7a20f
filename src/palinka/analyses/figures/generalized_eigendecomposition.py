"""Figures of the generalized eigendecomposition."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.figures.style import (
    DIVERGING,
    HUES,
    MUTED,
    block_means,
    captioned,
    color_label,
    draw_points,
    mark_zero,
    new_figure,
    style,
)
from palinka.analyses.generalized_eigendecomposition import (
    GeneralizedEigendecomposition,
    permuted_labels,
)
from palinka.analyses.generalized_eigendecomposition import (
    generalized_eigendecomposition as decompose,
)
from palinka.analyses.result import as_float64
from palinka.errors import InputError

# More items than this cannot be named beside an axis, and no name takes more characters.
MOST_LABELS, LONGEST_LABEL = 60, 48

Array = NDArray[np.float64]


def directions(names: tuple[str, str]) -> tuple[str, str]:
    """What the two directions are called."""
    return f"{names[0]} over {names[1]}", f"{names[1]} over {names[0]}"


def draw_scores(
    result: GeneralizedEigendecomposition,
    names: tuple[str, str],
    first: NDArray[np.bool_] | None,
    items: Sequence[str] | None,
) -> Figure:
    """Both leading components by item, beside the items' names where these are few.

    Args:
        result: What the analysis found.
        names: Of the conditions.
        first: `(items,)`, which of them are of the first condition, if that is known.
        items: What to call them.
    """
    count = len(result.scores_a)
    named = items is not None and len(items) == count <= MOST_LABELS
    labels = [_shortened(item) for item in items] if named and items is not None else []
    if named:
        height, longest = 1.2 + 0.13 * count, max(map(len, labels))
        figure, panels = new_figure(7.0 + 0.05 * longest, height, ncols=2, sharey=True)
    else:
        figure, panels = new_figure(8.5, 4.6, nrows=2, sharex=True)
    units = names[::-1]
    for axes, scores, direction, unit in zip(
        panels, (result.scores_a, result.scores_b), directions(names), units, strict=True
    ):
        _draw_stems(axes, scores, first, names, upright=not named)
        label = f"score (SD in {unit})"
        axes.set(title=direction, **({"xlabel": label} if named else {"ylabel": label}))
    if named:
        panels[0].set_yticks(range(count), labels, fontsize=6, parse_math=False)
        panels[0].set_ylim(count - 0.4, -0.6)
    else:
        panels[-1].set_xlabel("item")
    if first is not None:
        panels[0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    return figure


def _shortened(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def _draw_stems(
    axes: Axes,
    scores: Array,
    first: NDArray[np.bool_] | None,
    names: tuple[str, str],
    upright: bool = True,
) -> None:
    """A point on a stem for each item, in the color of its condition."""
    places = np.arange(len(scores))
    line = axes.axhline if upright else axes.axvline
    line(0.0, color=MUTED, linewidth=0.8, zorder=0)
    groups = [(slice(None), HUES[0], None)]
    if first is not None:
        groups = [(first, HUES[0], names[0]), (~first, HUES[1], names[1])]  # type: ignore[list-item]
    for chosen, hue, label in groups:
        stems = axes.vlines if upright else axes.hlines
        stems(places[chosen], 0.0, scores[chosen], color=hue, linewidth=0.7, alpha=0.6)
        x, y = (places, scores) if upright else (scores, places)
        axes.plot(x[chosen], y[chosen], "o", color=hue, ms=3, label=label)


def draw_shuffled(
    result: GeneralizedEigendecomposition, both: tuple[Array, Array], names: tuple[str, str],
    seed: int,
) -> Figure:  # fmt: skip
    """The true labeling in the left column, a shuffled one in the right.

    Args:
        result: What the analysis found.
        both: `(items, d)` each, that it was run on.
        names: Of the conditions.
        seed: Of the shuffled labeling.

    Raises:
        InputError: If the shuffled labeling leaves a covariance that cannot be inverted.
    """
    shuffled_a, shuffled_b, order = permuted_labels(*both, pairs=result.pairs, seed=seed)
    other = decompose(shuffled_a, shuffled_b, result.variance, result.shrinkage)
    count = len(order)
    place = np.argsort(order)  # back to the items' own order
    true, drawn = np.arange(count) < len(both[0]), place < len(both[0])
    figure, panels = new_figure(9.0, 7.0, nrows=3, ncols=2, sharey="row")
    for column, (title, each, labels, take) in enumerate(
        (
            ("True labels", result, true, np.arange(count)),
            ("One shuffled labeling", other, drawn, place),
        )
    ):
        spectrum = panels[0, column]
        for name, direction, hue in zip("ab", directions(names), HUES, strict=False):
            eigenvalues = getattr(each, f"eigenvalues_{name}")
            spectrum.plot(
                np.arange(1, len(eigenvalues) + 1), eigenvalues, "o-", ms=3, color=hue,
                label=direction,
            )  # fmt: skip
        spectrum.set(title=title, xlabel="generalized component")
        for row, name, direction in zip((1, 2), "ab", directions(names), strict=False):
            axes = panels[row, column]
            _draw_stems(axes, getattr(each, f"scores_{name}")[take], labels, names)
            axes.set_title(direction)
        panels[2, column].set_xlabel("item, colored by its label")
    panels[0, 0].set_ylabel("eigenvalue (variance ratio)")
    panels[0, 1].legend()
    panels[1, 1].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    for row, unit in ((1, names[1]), (2, names[0])):
        panels[row, 0].set_ylabel(f"score (SD in {unit})")
    return figure


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


TextSeries = tuple[Sequence[str], NDArray[np.float64], NDArray[np.float64]]
"""The tokens of a text, and their scores for the first condition over the second and back."""

# More frames than this are not drawn; more tokens than this are not named.
MOST_FRAMES, MOST_TOKENS = 6, 40
# Versions of one frame differ in no more tokens than this in either.
_LONGEST_TARGET = 3


def draw_series(series: Sequence[TextSeries], n_a: int, names: tuple[str, str]) -> Figure:
    """The first texts' scores in both directions, token by token.

    Where text `i` of either condition is the same frame with another target, the two are drawn
    over each other, and their corresponding tokens are joined. Other texts stand alone.

    Args:
        series: Of each text, in the order of the items: the first condition's texts first.
        n_a: How many texts are of the first condition.
        names: Of the conditions.
    """
    groups = _groups(series, n_a)[:MOST_FRAMES]
    most = min(max(len(series[text][0]) for group in groups for text in group), MOST_TOKENS)
    figure, panels = new_figure(
        max(8.0, 0.4 * most), 0.4 + 1.55 * len(groups), nrows=len(groups), ncols=2, squeeze=False,
        sharey="col",
    )  # fmt: skip
    for direction, units in ((0, names[1]), (1, names[0])):
        for row, group in enumerate(groups):
            axes = panels[row, direction]
            _draw_group(
                axes, [series[text] for text in group], [t >= n_a for t in group], direction
            )
            axes.set_ylabel(f"score (SD in {units})", fontsize="small")
        _series_limit(
            panels[:, direction], [series[text] for group in groups for text in group], direction
        )
        panels[0, direction].set_title(f"{names[direction]} over {names[1 - direction]}")
    for name, hue in zip(names, HUES, strict=False):
        panels[0, 1].plot([], [], "o-", color=hue, label=name)
    panels[0, 1].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    return figure


def corresponding(first: Sequence[str], second: Sequence[str]) -> tuple[int, int] | None:
    """How many tokens two versions of a frame share before and after the target.

    Returns:
        The two counts, or nothing if the two are no versions of one frame.
    """
    shorter = min(len(first), len(second))
    before = next((i for i in range(shorter) if first[i] != second[i]), shorter)
    rest = shorter - before
    after = next((i for i in range(rest) if first[-1 - i] != second[-1 - i]), rest)
    if max(len(first), len(second)) - before - after > _LONGEST_TARGET or before + after == 0:
        return None
    return before, after


def _groups(series: Sequence[TextSeries], n_a: int) -> list[tuple[int, ...]]:
    """Numbers of the texts to draw together."""
    pairs = [(i, n_a + i) for i in range(n_a)] if len(series) == 2 * n_a else []
    frames = [
        pair for pair in pairs if corresponding(series[pair[0]][0], series[pair[1]][0]) is not None
    ]
    if frames:
        return list(frames)
    half = MOST_FRAMES // 2
    alone = [*range(min(half, n_a)), *range(n_a, min(n_a + half, len(series)))]
    return [(text,) for text in alone]


def _draw_group(
    axes: Axes, texts: Sequence[TextSeries], second: Sequence[bool], direction: int
) -> None:
    """One text, or two versions of one, with their tokens along the axis."""
    length = max(len(text[0]) for text in texts)
    places = [np.arange(len(text[0]), dtype=float) for text in texts]
    labels = list(texts[0][0])
    if len(texts) == 2:
        (tokens, *scores), (others, *other_scores) = texts
        before, after = corresponding(tokens, others) or (0, 0)
        # What follows the target stands at the same place in both versions.
        for place, text in zip(places, texts, strict=True):
            if after:
                place[-after:] += length - len(text[0])
        longer, shorter = (tokens, others) if len(tokens) >= len(others) else (others, tokens)
        labels = list(longer)
        middle = "".join(tokens[before : len(tokens) - after])
        other = "".join(others[before : len(others) - after])
        if len(longer) == len(shorter) and length - before - after == 1:
            labels[before] = f"{middle}/{other.strip()}"
        joined = [*range(before + 1), *range(-after, 0)] if before < length else range(length)
        for token in joined:
            if token < min(len(tokens), len(others)):
                heights = scores[direction][token], other_scores[direction][token]
                axes.plot(
                    (places[0][token], places[1][token]), heights, color=MUTED, linewidth=0.8,
                    zorder=1,
                )  # fmt: skip
        axes.axvspan(before - 0.5, length - after - 0.5, color=HUES[4], alpha=0.2, linewidth=0)
    for place, text, of_second in zip(places, texts, second, strict=True):
        hue = HUES[1] if of_second else HUES[0]
        axes.plot(place, text[1 + direction], "o-", color=hue, ms=3, linewidth=1.0)
    mark_zero(axes)
    axes.set_xlim(-0.6, length - 0.4)
    if length <= MOST_TOKENS:
        axes.set_xticks(
            range(length), labels, rotation=40, ha="right", rotation_mode="anchor", fontsize=6.5,
            parse_math=False,
        )  # fmt: skip
    else:
        axes.set_xlabel("token")


def _series_limit(panels: NDArray[np.object_], texts: Sequence[TextSeries], direction: int) -> None:
    """Scale by all but the first tokens, which models single out with huge activations."""
    later = np.concatenate([text[1 + direction][1:] for text in texts])
    if len(later) == 0:
        return
    low, high = min(later.min(), 0.0), max(later.max(), 0.0)
    margin = 0.08 * (high - low) or 1.0
    for axes in panels:
        axes.set_ylim(low - margin, high + margin)


# Of the histogram of the null.
_BINS = 40


_CAPTIONS = {
    "spectrum": (
        "The eigenvalues of both directions, each as a share of its largest: ratios of the "
        "variance of one condition to that of the other. A steep fall means that few directions "
        "make the difference."
    ),
    "variance": (
        "How much of the activations' variance the principal components carry in which the "
        "directions were looked for."
    ),
    "scores": (
        "The items along the leading directions. Where one condition is spread out and the "
        "other is not, the direction holds for the items that it was found in."
    ),
    "patterns": "What each unit has to do with the leading directions.",
    "null": (
        "The largest eigenvalue beside those of exchanged labels, within pairs where the items "
        "are matched: how often chance finds as much. The held-out ratio is the geometric mean "
        "over halves of the items."
    ),
    "data": "The activations of both conditions, items by units, as they were analyzed.",
    "covariances": "The covariances of both conditions, which the directions compare.",
    "shuffled": (
        "The same analysis with the items' labels exchanged once, within pairs where the items "
        "are matched, after each condition was centered on its mean: what a spectrum and scores "
        "look like where there is no difference in variance to be found."
    ),
    "series": "The leading directions' scores token by token along the texts of both conditions.",
    "sites": (
        "The largest eigenvalue of both directions at each site, and, where it was computed, the "
        "variance ratio in held-out halves (geometric mean and central 95 %): near 1, the "
        "direction does not hold for other items."
    ),
}


def generalized_eigendecomposition(
    result: GeneralizedEigendecomposition,
    *,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    conditions: Sequence[str] = ("a", "b"),
    items: Sequence[str] | None = None,
    units: str = "units",
    series: Sequence[TextSeries] | None = None,
    seed: int = 0,
    **context: Any,
) -> dict[str, Figure]:
    """Draw the spectra, the leading components and what they were found in.

    Args:
        result: What `analyses.generalized_eigendecomposition` found.
        a: The first condition's activations, `(n_a, d)`.
        b: The second condition's, `(n_b, d)`.
        conditions: What to call the two.
        items: What to call the items, those of the first condition first.
        units: What the axes call the columns of the data.
        series: For each text its tokens and their scores in both directions, in the order of the
            items; needs `a` and `b`.
        seed: Of the shuffled labeling that is drawn beside the true one.
        **context: Ignored.

    Returns:
        `spectrum`, `variance`, `scores` and `patterns`; with permutations `null`; with `a` and
        `b` also `data`, `covariances` and `shuffled`; with `series` also `series`.
    """
    names = (str(conditions[0]), str(conditions[1]))
    with style():
        figures = {
            "spectrum": _spectrum(result, names),
            "variance": _variance(result),
            "patterns": _patterns(result, names, units),
        }
        if result.null_a is not None:
            figures["null"] = _null(result, names)
        if a is None or b is None:
            figures["scores"] = draw_scores(result, names, None, None)
            return captioned(figures, _CAPTIONS)
        both = as_float64(a, "a"), as_float64(b, "b")
        first = np.arange(len(result.scores_a)) < len(both[0])
        figures["scores"] = draw_scores(result, names, first, items)
        figures["data"] = draw_data(both, names, units)
        figures["covariances"] = draw_covariances(both, result.components, names, units)
        # Without shrinkage, a shuffled labeling can leave no covariance to invert.
        with contextlib.suppress(InputError):
            figures["shuffled"] = draw_shuffled(result, both, names, seed)
        if series is not None:
            figures["series"] = draw_series(series, len(both[0]), names)
    return captioned(figures, _CAPTIONS)


def overview(
    results: Mapping[str, GeneralizedEigendecomposition],
    conditions: Sequence[str] = ("a", "b"),
    **context: Any,
) -> dict[str, Figure]:
    """Draw the leading eigenvalues at every site, and how much of them holds out of sample.

    Args:
        results: What `analyses.generalized_eigendecomposition` found, by site.
        conditions: What to call the two.
        **context: Ignored.

    Returns:
        `sites`.
    """
    both = directions((str(conditions[0]), str(conditions[1])))
    tested = all(result.heldout_ratio_a is not None for result in results.values())
    with style():
        figure, panels = new_figure(
            8.0 if tested else 4.5, 1.2 + 0.3 * len(results), ncols=1 + tested, squeeze=False,
            sharey=True,
        )  # fmt: skip
        places = np.arange(len(results))
        for name, direction, hue, shift in zip("ab", both, HUES, (-0.12, 0.12), strict=False):
            leading = [getattr(result, f"eigenvalues_{name}")[0] for result in results.values()]
            panels[0, 0].plot(leading, places + shift, "o", color=hue, label=direction)
            if tested:
                ratios = np.array(
                    [getattr(result, f"heldout_ratio_{name}") for result in results.values()]
                )
                panels[0, 1].plot(ratios[:, 0], places + shift, "o", color=hue)
                panels[0, 1].hlines(places + shift, ratios[:, 1], ratios[:, 2], color=hue)
        panels[0, 0].set(xscale="log", xlabel="largest eigenvalue (variance ratio)")
        panels[0, 0].set_yticks(places, list(results), parse_math=False)
        panels[0, 0].invert_yaxis()
        panels[0, 0].legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
        if tested:
            panels[0, 1].axvline(1.0, color=MUTED, linewidth=0.8, zorder=0)
            panels[0, 1].set(xscale="log", xlabel="held-out variance ratio (95 % of halves)")
    return captioned({"sites": figure}, _CAPTIONS)


def _spectrum(result: GeneralizedEigendecomposition, names: tuple[str, str]) -> Figure:
    figure, axes = new_figure(5.6, 3.6)
    numbers = np.arange(1, len(result.eigenvalues_a) + 1)
    both = result.eigenvalues_a, result.eigenvalues_b
    for eigenvalues, direction, hue, marker in zip(
        both, directions(names), HUES, "os", strict=False
    ):
        label = f"{direction} (largest: {eigenvalues[0]:.4g})"
        axes.plot(numbers, eigenvalues / eigenvalues[0], f"{marker}-", color=hue, label=label, ms=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="generalized component", ylabel="eigenvalue (largest = 1)", ylim=(-0.03, 1.05))
    axes.set_title(f"Variance ratios in {len(numbers)} principal components")
    axes.legend()
    return figure


def _variance(result: GeneralizedEigendecomposition) -> Figure:
    cumulative, kept = result.variance_explained, result.components.shape[1]
    numbers = np.arange(1, len(cumulative) + 1)
    figure, (scree, sums) = new_figure(8.0, 3.4, ncols=2, sharex=True)
    shares = np.diff(cumulative, prepend=0.0)
    some = shares > 1e-10  # beyond it are the zeros of a spectrum shorter than the data
    scree.plot(numbers[some], shares[some], "o-", color=HUES[0], ms=3)
    scree.set(yscale="log", ylabel="variance of the component (%)", title="Scree")
    sums.plot(numbers, cumulative, "o-", color=HUES[0], ms=3)
    sums.axhline(result.variance, color=MUTED, linewidth=0.8, zorder=0)
    sums.set(ylabel="cumulative variance (%)", ylim=(min(cumulative[0], 90.0) - 2.0, 101.0))
    sums.set_title(f"{kept} components stay below {result.variance:g} %")
    for axes in (scree, sums):
        axes.axvspan(0.5, kept + 0.5, color=HUES[5], alpha=0.18, linewidth=0, zorder=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("principal component (shaded: kept)")
    return figure


def _patterns(result: GeneralizedEigendecomposition, names: tuple[str, str], units: str) -> Figure:
    figure, axes = new_figure(4.6, 4.4)
    draw_points(axes, result.pattern_a, result.pattern_b)
    mark_zero(axes)
    axes.axvline(0.0, color=MUTED, linewidth=0.8, zorder=0)
    first, second = directions(names)
    axes.set(xlabel=f"pattern, {first} (activation)", ylabel=f"pattern, {second} (activation)")
    axes.set_title(f"r = {result.pattern_correlation:.3f} over {len(result.pattern_a):,} {units}")
    return figure


def _null(result: GeneralizedEigendecomposition, names: tuple[str, str]) -> Figure:
    figure, panels = new_figure(8.0, 3.4, ncols=2, sharey=True)
    for axes, name, direction, hue in zip(panels, "ab", directions(names), HUES, strict=False):
        null, observed = getattr(result, f"null_{name}"), getattr(result, f"observed_{name}")
        finite = null[np.isfinite(null)]  # a labeling can leave a condition without variance
        axes.hist(finite, bins=min(_BINS, max(5, len(null) // 10)), color=MUTED, label="shuffled")
        axes.axvline(observed, color=hue, linewidth=2, label=f"observed: {observed:.4g}")
        axes.set(xlabel="largest eigenvalue (variance ratio)")
        title = f"{direction}: p = {getattr(result, f'p_value_{name}'):.3g}"
        ratio = getattr(result, f"heldout_ratio_{name}")
        if ratio is not None:
            title += "\nheld-out ratio {:.3g} (95 %: {:.3g} to {:.3g})".format(*ratio)
        axes.set_title(title)
        axes.legend()
    panels[0].set_ylabel(f"labelings, of {len(null):,}")
    return figure
