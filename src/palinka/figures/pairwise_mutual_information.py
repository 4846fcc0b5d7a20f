"""Pictures of what pairs of items share, for one site and over all."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.pairwise_mutual_information import (
    ROUNDING,
    PairwiseMutualInformation,
    of_pairs,
)
from palinka.figures.by_unit import draw_points
from palinka.figures.captions import captioned
from palinka.figures.pairs_by_site import (
    COVARIANCE,
    INFORMATION,
    bin_edges,
    by_site_and_condition,
    distributions,
    mean_activations,
    means_by_site,
    scatter_by_site,
)
from palinka.figures.style import (
    DIVERGING,
    HUES,
    block_means,
    color_label,
    mark_zero,
    new_figure,
    style,
)

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
        "How mutual information and covariance of pairs are distributed, a panel for each "
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
    """Draw what the items of one condition share at one site.

    Args:
        result: What `analyses.pairwise_mutual_information` found.
        **context: Not needed here.

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
    """Draw what items share at all sites, condition by condition and together.

    Args:
        results: By `site/condition`, or by site alone.
        conditions: The order of the conditions, if not that of `results`.
        means: The mean activation of each unit over items, `(units,)`, by the same keys.
        units: What the axes call the units.
        **context: Not needed here.

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
    below.hist(information, bins=edges, color=HUES[0], alpha=0.75, label="plain")
    below.hist(corrected, bins=edges, histtype="step", color=HUES[1], label="Miller-Madow")
    below.legend()
    below.set_title(f"means {information.mean():.3g} and {corrected.mean():.3g}")
    below.set_xlabel(INFORMATION)
    below.set_ylabel("pairs")
    edges = bin_edges(covariance.min(), covariance.max())
    beside.hist(covariance, bins=edges, color=HUES[0], alpha=0.75)
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
    axes.set_xlabel("item")
    axes.set_ylabel("item")
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
    axes.set_xlabel(INFORMATION)
    axes.set_ylabel(COVARIANCE)
    return figure
