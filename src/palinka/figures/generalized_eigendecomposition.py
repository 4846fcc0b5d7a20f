"""Pictures of the directions in which two conditions differ in variance."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.generalized_eigendecomposition import GeneralizedEigendecomposition
from palinka.analyses.result import as_float64
from palinka.errors import InputError
from palinka.figures.by_unit import draw_points
from palinka.figures.captions import captioned
from palinka.figures.component_scores import directions, draw_scores, draw_shuffled
from palinka.figures.condition_matrices import draw_covariances, draw_data
from palinka.figures.style import HUES, MUTED, mark_zero, new_figure, style
from palinka.figures.token_series import TextSeries, draw_series

# Of the histogram of the null.
_BINS = 40

Array = NDArray[np.float64]


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
