"""Figures of ablation."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from palinka.analyses.ablation import Ablation
from palinka.analyses.figures import style
from palinka.analyses.figures.activation_patching import UNITS, draw_maps, outcome_label
from palinka.analyses.result import Array, Mask
from palinka.analyses.stats.effects import cluster_means

# Axes that do not name a cell among those of one value.
HIDDEN = ("component", "value")


@style.captioned(
    map="The mean effect of ablating each cell, at one color scale. Outlined cells are significant "
    "after correction for all cells and values.",
    effects="The distribution of the mean effects over all cells, for each value. Few cells have "
    "an effect; the scale of counts is logarithmic.",
    values="The mean effect of each cell with the first value against that with another. Away from "
    "the diagonal the value matters; orange diamonds are significant differences.",
    self_repair="The mean effect of each cell against its direct effect on the logits. Later "
    "components make up for an ablation where a point lies between the diagonal and zero; orange "
    "diamonds are significant effects.",
)
def ablation(result: Ablation, **context: Any) -> dict[str, Figure]:
    """Draw `map` and `effects`, `values` with several, and `self_repair` with direct effects."""
    label = f"effect on the {outcome_label(result)}"
    what = "Clean prompts with one cell ablated"
    figures = {"map": draw_maps(result, result.effect, label, what)}
    value = np.array([str(cell.get("value", "")) for cell in result.cells()])
    first, *others = dict.fromkeys(value.tolist())
    figure, axes = style.new_figure(style.WIDTH, 2.4)
    bins = np.histogram_bin_edges(result.effect, 40)
    for index, name in enumerate((first, *others)):
        look: dict[str, Any] = {
            "color": style.cycled(index),
            "ls": ("-", "--", ":", "-.")[index % 4],
        }
        axes.hist(result.effect[value == name], bins, histtype="step", label=name, **look)
    axes.set(xlabel=label, ylabel="number of cells", yscale="log")
    style.plain_log(axes.yaxis)
    style.mark(axes, x=0.0)
    style.legend_above(axes, len(others) + 1)
    style.headline(figure, f"Effects of all cells, {what[0].lower()}{what[1:]}")
    figures["effects"] = figure
    cells = [
        cell["component"] + " " + ".".join(str(x) for axis, x in cell.items() if axis not in HIDDEN)
        for cell in result.cells()
    ]
    names, unit = np.array(cells), UNITS.get(result.outcome, "")
    if result.difference is not None and result.difference_p_corrected is not None:
        found = result.difference_p_corrected <= round(1.0 - result.level, 12)
        figure, every = _scatters(others)
        for at, name in zip(every, others, strict=True):
            own, reference = value == name, value == first
            _scatter(at, result.effect[own], result.effect[reference], found[own], names[own])
            at.set(xlabel=f"effect, {name}{unit}", ylabel=f"effect, {first}{unit}")
        style.headline(figure, f"Mean effects of ablation: {first} against {' and '.join(others)}")
        figures["values"] = figure
    if result.direct_effect is not None:
        direct = cluster_means(result.direct_effect, np.array(result.cluster)).mean(axis=1)
        figure, every = _scatters([first, *others])
        for at, name in zip(every, (first, *others), strict=True):
            own = value == name
            _scatter(at, direct[own], result.effect[own], result.significant[own], names[own])
            at.set(title=name, xlabel=f"direct effect{unit}", ylabel=f"effect{unit}")
        style.headline(figure, "Self-repair of ablations: effects off the diagonal")
        figures["self_repair"] = figure
    return figures


def _scatters(panels: list[str]) -> tuple[Figure, list[Axes]]:
    columns = min(2, len(panels))
    size = 3.3 / columns, 3.0 / columns + 0.2
    return style.small_multiples(len(panels), columns, size, (0.24, 0.4), sharex=True, sharey=True)


def _scatter(axes: Axes, x: Array, y: Array, marked: Mask, names: NDArray[np.str_]) -> None:
    """Draw cells about the diagonal, and name the marked ones that are farthest from it."""
    for chosen, color, marker in ((~marked, style.MUTED, "o"), (marked, style.COLORS[1], "D")):
        style.draw_points(axes, x[chosen], y[chosen], color, marker=marker)
    axes.axline((0, 0), slope=1.0, color="black", lw=0.7)
    style.mark(axes, x=0.0, y=0.0)
    far = np.argsort(-np.abs(y - x) * marked)[: style.NAMED]
    style.name_points(axes, x, y, far[marked[far]], names)
