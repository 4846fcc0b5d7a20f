"""Figures of direct logit attribution."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from palinka.analyses.direct_logit_attribution import DirectLogitAttribution
from palinka.analyses.figures import style
from palinka.analyses.figures.activation_patching import draw_maps
from palinka.analyses.result import Array
from palinka.analyses.stats.effects import Effects

LAYERS = {"attn.out": "attention", "mlp.out": "MLP"}
# Cells of other components that are drawn, those with the largest contributions.
MAX_BARS = 20


@style.captioned(
    layers="The mean contribution of attention and MLP of each layer, with bootstrap intervals "
    "over texts or templates. Filled bars are significant.",
    heads="The mean contribution of each head. Outlined heads are significant after correction for "
    "all components.",
    cumulative="The part of the logit difference that the residual stream has before each layer, "
    "with the output's scale; at the right it is complete. The band is a bootstrap interval, and "
    "diamonds are significant.",
    largest="The largest mean contributions, with bootstrap intervals over texts or templates. "
    "Filled bars are significant.",
)
def direct_logit_attribution(
    result: DirectLogitAttribution, *, target: str = "logit difference", **context: Any
) -> dict[str, Figure]:
    """Draw `layers`, `heads` and `cumulative`, or the `largest` of other components.

    `target` is what the contributions add up to, for the labels.
    """
    figures, label = {}, "contribution (logits)"
    numbers = result.maps(np.arange(len(result.effect)))
    if parts := {name: numbers[name] for name in LAYERS if name in numbers}:
        figures["layers"], axes = style.new_figure(style.WIDTH, 2.2)
        for index, (name, cells) in enumerate(parts.items()):
            places = np.arange(len(cells)) + 0.4 * index - 0.2
            look = _look(result, cells, style.cycled(index))
            axes.bar(places, result.effect[cells], 0.36, yerr=_errors(result, cells), **look)
            axes.plot([], [], "s", color=look["edgecolor"], label=LAYERS[name])
        axes.set(xlabel="layer", ylabel=label)
        style.mark(axes, y=0.0)
        style.legend_above(axes, len(parts))
        rule = f" (filled: p ≤ {1 - result.level:.3g})"
        style.headline(figures["layers"], f"Contributions to the {target}{rule}")
    if "heads" in numbers:
        what = f"Contributions of heads to the {target}"
        figures["heads"] = draw_maps(result, {"": result.effect}, label, what, "heads")
    if "resid" in numbers:
        cells = numbers["resid"]
        figures["cumulative"], axes = style.new_figure(style.WIDTH, 2.2)
        marked = np.flatnonzero(result.significant[cells]).tolist()
        axes.plot(result.effect[cells], "D-", markevery=marked, mfc=style.COLORS[1], mew=0)
        band = result.effect_low[cells], result.effect_high[cells]
        axes.fill_between(range(len(cells)), *band, alpha=0.2, lw=0)
        style.mark(axes, y=0.0)
        axes.set(xlabel="layers before", ylabel="logits")
        style.headline(figures["cumulative"], f"The {target} in the residual stream")
    for name in figures.keys() - {"heads"}:
        figures[name].axes[0].locator_params(axis="x", integer=True)
    return figures or {"largest": _largest(result, label, target)}


def _largest(result: DirectLogitAttribution, label: str, target: str) -> Figure:
    cells = np.argsort(-np.abs(result.effect), kind="stable")[:MAX_BARS][::-1]
    figure, axes = style.new_figure(style.WIDTH, 0.9 + 0.12 * len(cells))
    every, look = result.cells(), _look(result, cells, style.COLORS[0])
    axes.barh(range(len(cells)), result.effect[cells], xerr=_errors(result, cells), **look)
    names = [" ".join(f"{k} {v}" for k, v in list(every[i].items())[1:]) for i in cells]
    axes.set_yticks(range(len(cells)), names)
    axes.set_xlabel(label)
    style.mark(axes, x=0.0)
    style.headline(figure, f"The largest of {len(result.effect):,} contributions to the {target}")
    return figure


def _look(result: Effects, cells: NDArray[np.int64], color: str) -> dict[str, Any]:
    """Bars filled where they are significant."""
    filled = [color if found else "none" for found in result.significant[cells]]
    return {"color": filled, "edgecolor": color, "lw": 0.8, "error_kw": {"elinewidth": 0.6}}


def _errors(result: Effects, cells: NDArray[np.int64]) -> Array:
    ends = result.effect_low[cells], result.effect_high[cells]
    return np.abs(np.stack(ends) - result.effect[cells])
