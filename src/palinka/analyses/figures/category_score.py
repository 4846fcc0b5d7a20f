"""Figures of the category score."""

from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from palinka.analyses.category_score import CategoryScore
from palinka.analyses.figures import style
from palinka.analyses.result import Array

ALPHA = 0.05
SCORE = "score (target mean / other mean)"
# Around the first latent of a ranking.
RING: dict[str, Any] = {"marker": "o", "ms": 8, "mfc": "none", "mec": style.COLORS[1], "ls": ""}
# From the lowest significant value on.
LINE: dict[str, Any] = {"color": style.COLORS[1], "lw": 0.9, "ls": "--"}
# Latents of score 0 have no place on a logarithmic axis: share of the axis from its left edge.
LEFT_EDGE = 0.02


@style.captioned(
    score="The score of every latent that has one, by its number and in descending order. Above 1 "
    "a latent is stronger on the target tokens than on the others. Where some have a permutation "
    "p-value of 0.05 or less, a dashed line shows from where on.",
    auc="The score against the area under the ROC curve. A high score with an AUC near 0.5 comes "
    "from few tokens. Rings mark the first latent of either ranking; latents of score 0 stand at "
    "the left edge. Dashed lines show from where on the permutation p-value is at most 0.05.",
)
def category_score(
    result: CategoryScore, *, units: str = "latents", **context: Any
) -> dict[str, Figure]:
    """Draw `score`, by latent, and with AUCs `auc`, both with p-values if there are any."""
    figures = {"score": _scores(result, units)}
    if result.auc is not None:
        figures["auc"] = _score_against_auc(result, result.auc, units)
    for figure in figures.values():
        # The assumptions of the p-values, and that a ratio of signed activations says little.
        notes = [fill(note, int(15 * figure.get_figwidth())) for note in result.notes]
        figure.suptitle("\n".join(notes), fontsize="small", style="italic")
    return figures


def _scores(result: CategoryScore, units: str) -> Figure:
    positive = result.score > 0
    groups = [(positive, style.COLORS[0], None)]
    figure, *panels = style.draw_by_unit(result.score, groups, units, SCORE, f"{units} above 0")
    if positive.any():
        panels[0].plot(result.score.argmax(), result.score.max(), **RING)
    for axes in panels:
        style.mark(axes, y=1.0)
    threshold = _lowest_significant(result.score, result.p_value)
    if threshold is not None:
        panels[0].axhline(threshold, label=f"p ≤ {ALPHA}", **LINE)
    panels[0].set_title(_headline(result, units))
    style.draw_highlighted(panels[0], np.flatnonzero(~positive), "score 0", style.MUTED)
    style.legend_above(panels[0], columns=2)
    return figure


def _score_against_auc(result: CategoryScore, auc: Array, units: str) -> Figure:
    figure, axes = style.new_figure(5.4, 4.0)
    positive = result.score > 0
    style.draw_points(axes, result.score[positive], auc[positive], xscale="log")
    edge: dict[str, Any] = {"transform": axes.get_yaxis_transform()}
    if not positive.all():
        dashes: dict[str, Any] = {"ms": 7, "mew": 0.6, "alpha": 0.6, "color": style.MUTED, **edge}
        left = np.full((~positive).sum(), LEFT_EDGE)
        axes.plot(left, auc[~positive], "_", rasterized=True, label="score 0", **dashes)
    for best in (result.score.argmax(), auc.argmax()):
        x, where = (result.score[best], {}) if positive[best] else (LEFT_EDGE, edge)
        axes.plot(x, auc[best], **where, **RING)
    style.mark(axes, y=0.5)
    lowest_score = _lowest_significant(result.score, result.p_value)
    if lowest_score is not None:
        axes.axvline(lowest_score, label=f"p ≤ {ALPHA}", **LINE)
    lowest_auc = _lowest_significant(auc, result.auc_p_value)
    if lowest_auc is not None:
        label = f"p ≤ {ALPHA}" if lowest_score is None else None
        axes.axhline(lowest_auc, label=label, **LINE)
    style.legend_above(axes)
    axes.set(xlabel=SCORE, ylabel="AUC as a detector of the category")
    axes.set_title(_headline(result, units))
    return figure


def _lowest_significant(values: Array, p_value: Array | None) -> float | None:
    if p_value is None or not (p_value <= ALPHA).any():
        return None
    return float(values[p_value <= ALPHA].min())


def _headline(result: CategoryScore, units: str) -> str:
    """The first latent of either ranking, a line each."""
    lines = []
    rankings = ("scores", result.score, result.p_value), ("has AUC", result.auc, result.auc_p_value)
    for verb, values, p_values in rankings:
        if values is not None:
            best = values.argmax()
            chance = "" if p_values is None else f", p = {p_values[best]:.3g}"
            lines.append(f"{units[:-1]} {best:,} {verb} {values[best]:.3g}{chance}")
    return "\n".join(lines)
