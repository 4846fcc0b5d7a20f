"""Figures of lesions."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from palinka.analyses.figures import style
from palinka.analyses.figures.activation_patching import outcome_label
from palinka.analyses.lesion import Lesion
from palinka.analyses.result import Array


@style.captioned(
    profile="The mean effect of ablating the selected units together, by site, with its bootstrap "
    "interval over templates, and the range of most matched control sets (gray). Points are "
    "significant. Below, if the units prefer an answer: the effect on prompts with that answer, "
    "and on the others.",
    null="The effects of the control sets at the site where the selected units differ most from "
    "them, and the effect of the selected units.",
    dose="The effect of the strongest units by their number, with its bootstrap interval over "
    "templates, and the range of the effects of most sets of as many matched units (gray).",
)
def lesion(result: Lesion, units: str = "units", **context: Any) -> dict[str, Figure]:
    """Draw `profile` of several sites, `null`, and `dose` of several numbers of units."""
    (at,) = result.strongest()
    several, label = len(result.effect) > 1, f"effect on the\n{outcome_label(result)}"
    figures = {"profile": _profile(result, units, label)} if several else {}
    figures["null"], axes = style.new_figure(style.WIDTH, 2.2)
    null, effect = result.null[at], result.effect[at]
    axes.hist(null, 20, color=style.MUTED, label=f"{len(null)} matched sets")
    axes.axvline(effect, color=style.COLORS[1], lw=1.5, label="selected")
    axes.set(xlabel=label.replace("\n", " "), ylabel="number of sets")
    style.legend_above(axes, 2)
    p = f"p {result.p[at]:.3g}"
    if several:
        p += f", {result.p_corrected[at]:.3g} corrected for {len(result.p)} sites"
    count = f"{result.units.shape[1]} {units}"
    style.headline(figures["null"], f"Lesion of {count} of {result.place()} ({p})")
    if len(result.doses) > 1:
        figures["dose"], axes = style.new_figure(style.WIDTH, 2.4)
        band = result.dose_null_low[at], result.dose_null_high[at]
        rows = result.dose_effect[at], result.dose_low[at], result.dose_high[at]
        _draw(axes, result.doses, band, rows)
        axes.set(xscale="log", xlabel=f"number of {units}, the strongest first", ylabel=label)
        axes.set_xticks(result.doses, list(map(str, result.doses)))
        axes.minorticks_off()
        text = f"Lesion of the strongest {units} of {result.place()}, and of as many controls"
        style.headline(figures["dose"], text)
    return figures


def _profile(result: Lesion, units: str, label: str) -> Figure:
    by_answer = bool(np.isfinite(result.specificity).any())
    layout: dict[str, Any] = {"nrows": 1 + by_answer, "sharex": True, "squeeze": False}
    figure, panels = style.new_figure(style.WIDTH, 2.4 + 1.5 * by_answer, **layout)
    axis, labels = next(iter(result.axes[""].items()))
    sites = np.arange(len(labels))
    low, high = np.quantile(result.null, [(1 - result.level) / 2, (1 + result.level) / 2], axis=1)
    rows = result.effect, result.effect_low, result.effect_high
    _draw(panels[0, 0], sites, (low, high), rows)
    found = result.significant
    panels[0, 0].plot(sites[found], result.effect[found], "o", color=style.COLORS[1])
    panels[0, 0].set_ylabel(label)
    if by_answer:
        curves = {"preferred answer": result.effect_preferred, "other": result.effect_other}
        for index, (name, values) in enumerate(curves.items()):
            panels[1, 0].plot(sites, values, label=name, **style.look(2 + index))
        panels[1, 0].set_ylabel("effect")
        style.mark(panels[1, 0], y=0.0)
        style.legend_above(panels[1, 0], 2)
    step, rotation = -(-len(labels) // 12), 90 if isinstance(labels[0], str) else 0
    names: dict[str, Any] = {"parse_math": False, "rotation": rotation}
    panels[-1, 0].set_xticks(sites[::step], list(map(str, labels[::step])), **names)
    panels[-1, 0].set_xlabel(axis)
    rule = f"points: p ≤ {1 - result.level:.3g}, corrected for {len(labels)} sites"
    style.headline(figure, f"Lesion of {result.units.shape[1]} {units} by {axis} ({rule})")
    return figure


def _draw(axes: Axes, x: Any, band: tuple[Array, Array], rows: tuple[Array, Array, Array]) -> None:
    """Draw effects, the first of the rows, with their interval over the band of the controls."""
    axes.fill_between(x, *band, color=style.MUTED, alpha=0.35, lw=0, label="controls")
    axes.plot(x, rows[0], color=style.COLORS[1], label="selected")
    axes.fill_between(x, *rows[1:], color=style.COLORS[1], alpha=0.2, lw=0)
    style.mark(axes, y=0.0)
    style.legend_above(axes, 2)
