"""Figures of direct logit attribution."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from palinka.analyses.direct_logit_attribution import DirectLogitAttribution
from palinka.analyses.figures import style

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
    figures = {}
    numbers = result.maps(np.arange(len(result.effect)))
    label = "contribution (logits)"
    if parts := {name: numbers[name] for name in LAYERS if name in numbers}:
        figures["layers"], axes = style.new_figure(style.WIDTH, 2.2)
        for index, (name, cells) in enumerate(parts.items()):
            places = np.arange(len(cells)) + 0.4 * (index - (len(parts) - 1) / 2)
            look = {"width": 0.36, "color": style.cycled(index), "label": LAYERS[name]}
            _draw_bars(result, axes.bar, places, cells, "yerr", look)
        axes.set(xlabel="layer", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        style.mark(axes, y=0.0)
        style.legend_above(axes, len(parts))
        style.headline(figures["layers"], f"Contributions to the {target}")
    if "heads" in numbers:
        cells, labels = numbers["heads"], list(result.axes["heads"].items())
        height = 1.3 + 0.12 * len(cells)
        figures["heads"], axes = style.new_figure(style.WIDTH, height)
        limit = float(np.abs(result.effect[cells]).max()) or 1.0
        image = style.draw_cells(axes, result.effect[cells], limit, *labels)
        style.outline(axes, result.significant[cells])
        figures["heads"].colorbar(image, ax=axes, label=label, location="bottom", aspect=30)
        style.headline(
            figures["heads"], f"Heads' contributions to the {target} (outlined: significant)"
        )
    if "resid" in numbers:
        cells = numbers["resid"]
        figures["cumulative"], axes = style.new_figure(style.WIDTH, 2.2)
        axes.plot(result.effect[cells])
        band = result.effect_low[cells], result.effect_high[cells]
        axes.fill_between(range(len(cells)), *band, alpha=0.2, lw=0)
        (found,) = np.nonzero(result.significant[cells])
        axes.plot(found, result.effect[cells][found], "D", color=style.COLORS[1])
        style.mark(axes, y=0.0)
        axes.set(xlabel="layers before", ylabel="logits")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        style.headline(figures["cumulative"], f"The {target} in the residual stream")
    if figures:
        return figures
    cells = np.argsort(-np.abs(result.effect), kind="stable")[:MAX_BARS][::-1]
    figures["largest"], axes = style.new_figure(style.WIDTH, 0.9 + 0.12 * len(cells))
    look = {"height": 0.8, "color": style.COLORS[0]}
    _draw_bars(result, axes.barh, np.arange(len(cells)), cells, "xerr", look)
    every = result.cells()
    names = [" ".join(f"{k} {v}" for k, v in list(every[i].items())[1:]) for i in cells]
    axes.set_yticks(range(len(cells)), names)
    axes.set_xlabel(label)
    style.mark(axes, x=0.0)
    style.headline(
        figures["largest"], f"The largest of {len(result.effect):,} contributions to the {target}"
    )
    return figures


def _draw_bars(
    result: DirectLogitAttribution, draw: Any, places: Any, cells: Any, errors: str,
    look: dict[str, Any],
) -> None:  # fmt: skip
    mean = result.effect[cells]
    bounds = np.stack([mean - result.effect_low[cells], result.effect_high[cells] - mean])
    bars = draw(places, mean, edgecolor=look["color"], linewidth=0.8, **look)
    for bar, filled in zip(bars, result.significant[cells], strict=True):
        bar.set_fill(bool(filled))
    middle, ends = (mean, places) if errors == "xerr" else (places, mean)
    axes = draw.__self__
    axes.errorbar(middle, ends, fmt="none", ecolor="black", elinewidth=0.6, **{errors: bounds})
