"""Figures of the category score."""

from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from palinka.analyses.category_score import CategoryScore
from palinka.analyses.figures.style import (
    COLORS,
    MUTED,
    captioned,
    draw_highlighted,
    draw_points,
    draw_sorted,
    legend_above,
    new_figure,
    ranked_panels,
    style,
)

_CAPTIONS = {
    "score": (
        "The score of every latent that has one, by its number and in descending order. Above 1 a "
        "latent is stronger on the target tokens than on the others. Where some have a permutation "
        "p-value of 0.05 or less, a dashed line shows from where on."
    ),
    "auc": (
        "The score against the area under the ROC curve. A high score with an AUC near 0.5 comes "
        "from few tokens. Rings mark the first latent of either ranking; latents of score 0 stand "
        "at the left edge. Dashed lines show from where on the permutation p-value is at most 0.05."
    ),
}

ALPHA = 0.05
SCORE = "score (target mean / other mean)"
# Around the first latent of a ranking.
RING: dict[str, Any] = {"marker": "o", "ms": 8, "mfc": "none", "mec": COLORS[1], "ls": ""}
# Latents of score 0 have no place on a logarithmic axis: share of the axis from its left edge.
LEFT_EDGE = 0.02


def category_score(
    result: CategoryScore, *, units: str = "latents", **context: Any
) -> dict[str, Figure]:
    """Draw `score`, by latent, and with AUCs `auc`, both with p-values if there are any."""
    with style():
        figures = {"score": _scores(result, units)}
        if result.auc is not None:
            figures["auc"] = _score_against_auc(result, result.auc, units)
        for figure in figures.values():
            # The assumptions of the p-values, and that a ratio of signed activations says little.
            if result.notes:
                width = int(15 * figure.get_figwidth())
                notes = "\n".join(fill(note, width) for note in result.notes)
                figure.suptitle(notes, fontsize="small", style="italic")
    return captioned(figures, _CAPTIONS)


def _scores(result: CategoryScore, units: str) -> Figure:
    count = len(result.score)
    figure, by_number, by_rank = ranked_panels(count, units, SCORE, f"{units} above 0")
    numbers, positive = np.arange(count), result.score > 0
    if positive.any():
        draw_points(by_number, numbers[positive], result.score[positive], log_y=True)
        draw_sorted(by_rank, result.score[positive])
        by_number.plot(result.best, result.best_score, **RING)
    for axes in (by_number, by_rank):
        axes.axhline(1.0, color=MUTED, lw=0.8, zorder=0)
    threshold = _lowest_significant(result.score, result.p_value)
    if threshold is not None:
        by_number.axhline(threshold, color=COLORS[1], lw=0.9, ls="--", label=f"p ≤ {ALPHA}")
    by_number.set_title(_headline(result, units))
    draw_highlighted(by_number, numbers[~positive], "score 0", MUTED)
    if by_number.get_legend_handles_labels()[0]:
        legend_above(by_number, columns=2)
    return figure


def _score_against_auc(result: CategoryScore, auc: NDArray[np.float64], units: str) -> Figure:
    figure, axes = new_figure(5.4, 4.0)
    positive = result.score > 0
    if positive.any():
        draw_points(axes, result.score[positive], auc[positive], log_x=True)
    at_edge = axes.get_yaxis_transform()
    if not positive.all():
        axes.plot(
            np.full((~positive).sum(), LEFT_EDGE), auc[~positive], "_", ms=7, mew=0.6, alpha=0.6,
            color=MUTED, transform=at_edge, rasterized=True, label="score 0",
        )  # fmt: skip
    for best in (result.best, int(auc.argmax())):
        if positive[best]:
            axes.plot(result.score[best], auc[best], **RING)
        else:
            axes.plot(LEFT_EDGE, auc[best], transform=at_edge, **RING)
    axes.axhline(0.5, color=MUTED, lw=0.8, zorder=0)
    line = {"color": COLORS[1], "lw": 0.9, "ls": "--"}
    lowest_score = _lowest_significant(result.score, result.p_value)
    if lowest_score is not None:
        axes.axvline(lowest_score, label=f"p ≤ {ALPHA}", **line)
    lowest_auc = _lowest_significant(auc, result.auc_p_value)
    if lowest_auc is not None:
        label = f"p ≤ {ALPHA}" if lowest_score is None else None
        axes.axhline(lowest_auc, label=label, **line)
    if axes.get_legend_handles_labels()[0]:
        legend_above(axes)
    axes.set(xlabel=SCORE, ylabel="AUC as a detector of the category")
    axes.set_title(_headline(result, units))
    return figure


def _lowest_significant(
    values: NDArray[np.float64], p_value: NDArray[np.float64] | None
) -> float | None:
    """The lowest value with a p-value of 0.05 or less over all latents together."""
    if p_value is None or not (p_value <= ALPHA).any():
        return None
    return float(values[p_value <= ALPHA].min())


def _headline(result: CategoryScore, units: str) -> str:
    """The first latent of either ranking, a line each."""
    lines = [f"{units[:-1]} {result.best:,} scores {result.best_score:.3g}"]
    if result.best_p_value is not None:
        lines[0] += f", p = {result.best_p_value:.3g}"
    if result.best_auc is not None:
        lines.append(f"{units[:-1]} {result.best_auc_latent:,} has AUC {result.best_auc:.3g}")
        if result.best_auc_p_value is not None:
            lines[1] += f", p = {result.best_auc_p_value:.3g}"
    return "\n".join(lines)
