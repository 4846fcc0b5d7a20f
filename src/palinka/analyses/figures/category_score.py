"""Figures of the category score."""

from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from palinka.analyses.category_score import CategoryScore
from palinka.analyses.figures import style
from palinka.analyses.result import Array
from palinka.analyses.stats.permutation import critical_value

SCORE = "score (ratio of means)"
# Around the first latent of a ranking.
RING: dict[str, Any] = {"marker": "o", "ms": 8, "mfc": "none", "mec": style.COLORS[1], "ls": ""}
# What 5 % of the exchanges of labels reach with any latent.
LINE: dict[str, Any] = {"color": style.COLORS[1], "lw": 0.9, "ls": "--"}
# Latents of score 0 have no place on a logarithmic axis: share of the axis from its left edge.
LEFT_EDGE = 0.02


@style.captioned(
    score="The score of every latent that has one, by its number and in descending order. Above 1 "
    "a latent is stronger on the target tokens than on the others. Of a latent above the dashed "
    "line, the permutation p-value is 0.05 or less.",
    auc="The score against the area under the ROC curve. A high score with an AUC near 0.5 comes "
    "from few tokens. Rings mark the first latent of either ranking; latents of score 0 stand at "
    "the left edge. Beyond the dashed lines the permutation p-value is 0.05 or less. Without any "
    "score, by number.",
)
def category_score(
    result: CategoryScore, *, units: str = "latents", category: str = "the category",
    **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw `score`, by latent, and with AUCs `auc`, which is enough where no score is above 0."""
    figures = {}
    if result.auc is None or (result.score > 0).any():
        figures["score"] = _scores(result, units)
    if result.auc is not None:
        figures["auc"] = _score_against_auc(result, result.auc, units)
    for figure in figures.values():
        dashed = any(line.get_linestyle() == "--" for axes in figure.axes for line in axes.lines)
        rule = " (dashed: p = 0.05)" * dashed
        style.headline(figure, f"Preference of {units} for {category}{rule}")
        # The assumptions of the p-values, and that a ratio of signed activations says little.
        notes = "\n".join(fill(note, 66) for note in result.notes)
        figure.supxlabel(notes, x=0.01, ha="left", fontsize=6.5, style="italic")
    return figures


def _scores(result: CategoryScore, units: str) -> Figure:
    positive = result.score > 0
    groups = [(positive, style.COLORS[0], None)]
    figure, *panels = style.draw_by_unit(result.score, groups, units, SCORE, f"{units} above 0")
    if positive.any():
        panels[0].plot(result.score.argmax(), result.score.max(), **RING)
    for axes in panels:
        style.mark(axes, y=1.0)
        _draw_bound(axes, result.null_score)
    title = _best("scores", result.score, result.p_value, units)
    panels[0].set_title(f"{title}\n{(~positive).sum():,} score 0 (gray)")
    style.draw_highlighted(panels[0], np.flatnonzero(~positive), "score 0", style.MUTED)
    return figure


def _score_against_auc(result: CategoryScore, auc: Array, units: str) -> Figure:
    figure, axes = style.new_figure(style.WIDTH, 3.8)
    score, label, log = result.score, SCORE, {"xscale": "log"}
    positive = score > 0
    if not positive.any():
        score, positive = np.arange(float(len(auc))), np.ones(len(auc), dtype=bool)
        label, log = style.number_of(units), {}
    shown = np.flatnonzero(positive)
    style.draw_points(axes, score[shown], auc[shown], **log)
    edge: dict[str, Any] = {"transform": axes.get_yaxis_transform()}
    if not positive.all():
        dashes: dict[str, Any] = {"ms": 7, "mew": 0.6, "alpha": 0.6, "color": style.MUTED, **edge}
        left = np.full((~positive).sum(), LEFT_EDGE)
        axes.plot(left, auc[~positive], "_", rasterized=True, **dashes)
        label += "; 0: gray, on the left"
    if log:
        style.plain_log(axes.xaxis)
        _draw_bound(axes, result.null_score, across=True)
    for best in {result.score.argmax(), auc.argmax()} if log else {auc.argmax()}:
        x, where = (score[best], {}) if positive[best] else (LEFT_EDGE, edge)
        axes.plot(x, auc[best], **where, **RING)
    style.mark(axes, y=0.5)
    _draw_bound(axes, result.null_auc)
    ranked = style.extremes(auc[shown]) + (style.extremes(score[shown]) if log else [])
    style.name_points(axes, score[shown], auc[shown], ranked, shown)
    axes.set(xlabel=label, ylabel="AUC as a detector of the category")
    lines = ("scores", result.score, result.p_value), ("has AUC", auc, result.auc_p_value)
    axes.set_title("\n".join(_best(*line, units) for line in (lines if log else lines[1:])))
    return figure


def _draw_bound(axes: Axes, null: Array | None, across: bool = False) -> None:
    """Draw a line at what 5 % of the exchanges of labels reach."""
    if null is None or not 0 < (bound := critical_value(null)) < np.inf:
        return
    (axes.axvline if across else axes.axhline)(bound, **LINE)


def _best(verb: str, values: Array, p_values: Array | None, units: str) -> str:
    best = values.argmax()
    chance = "" if p_values is None else f", p = {p_values[best]:.3g}"
    return f"{units[:-1]} {best} {verb} {values[best]:.3g}{chance}"
