"""Figures of ablation."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from palinka.analyses.ablation import Ablation
from palinka.analyses.figures import style
from palinka.analyses.figures.activation_patching import UNITS, draw_maps, outcome_label, short_name
from palinka.analyses.result import Array, Mask
from palinka.analyses.stats.effects import cluster_means


@style.captioned(
    map="The mean effect of ablating each cell, at one color scale. Outlined cells are significant "
    "after correction for all cells and values.",
    effects="The distribution of the mean effects over all cells, for each value. Few cells have "
    "an effect; the scale of counts is logarithmic.",
    values="The mean effect of each cell with the first value against that with another. Away from "
    "the diagonal the value matters; orange diamonds are significant differences.",
    indirect_effect="The mean effect of each cell against its direct effect on the logits. Off the "
    "diagonal later components respond: between it and zero they make up for the ablation "
    "(self-repair), beyond it they add to it. Orange diamonds are significant effects.",
)
def ablation(result: Ablation, **context: Any) -> dict[str, Figure]:
    """Draw `map`, `effects`, `values` with several, and `indirect_effect` with direct ones."""
    label, unit = f"effect on the {outcome_label(result)}", UNITS.get(result.outcome, "")
    figures = {
        "map": draw_maps(result, {"": result.effect}, label, "Clean prompts with one cell ablated")
    }
    cells = result.cells()
    value = np.array([str(cell.get("value", "")) for cell in cells])
    names = np.array([short_name(cell, "value", "site") for cell in cells])
    own = {name: value == name for name in dict.fromkeys(value.tolist())}
    figures["effects"], axes = style.new_figure(style.WIDTH, 2.4)
    bins = np.histogram_bin_edges(result.effect, 40)
    for index, (name, of) in enumerate(own.items()):
        look: dict[str, Any] = {"color": style.cycled(index), "ls": style.LINES[index % 4]}
        axes.hist(result.effect[of], bins, histtype="step", label=name, **look)
    axes.set(xlabel=label, ylabel="number of cells", yscale="log", ylim=(0.8, None))
    style.plain_log(axes.yaxis)
    style.mark(axes, x=0.0)
    style.legend_above(axes, len(own))
    style.headline(figures["effects"], "Effects of all cells, clean prompts with one cell ablated")
    first, *others = own
    if result.difference_p_corrected is not None:
        differ = result.difference_p_corrected <= round(1.0 - result.level, 12)
        figures["values"], every = _scatters(others)
        for at, name in zip(every, others, strict=True):
            x, y = result.effect[own[name]], result.effect[own[first]]
            _scatter(at, x, y, differ[own[name]], names[own[name]])
            at.set(xlabel=f"effect, {name}{unit}", ylabel=f"effect, {first}{unit}")
        what = f"Mean effects of ablation: {first} against {' and '.join(others)}"
        style.headline(figures["values"], what)
    if result.direct_effect is not None:
        direct = cluster_means(result.direct_effect, np.array(result.cluster)).mean(axis=1)
        figures["indirect_effect"], every = _scatters([*own])
        for at, (name, of) in zip(every, own.items(), strict=True):
            _scatter(at, direct[of], result.effect[of], result.significant[of], names[of])
            at.set(title=name, xlabel=f"direct effect{unit}", ylabel=f"effect{unit}")
        what = "Effects of ablations (on the diagonal: direct effects alone)"
        style.headline(figures["indirect_effect"], what)
    return figures


def _scatters(panels: list[str]) -> tuple[Figure, list[Axes]]:
    columns = min(2, len(panels))
    size = 3.3 / columns, 3.0 / columns + 0.2
    return style.small_multiples(len(panels), columns, size, (0.24, 0.4), sharex=True, sharey=True)


def _scatter(axes: Axes, x: Array, y: Array, marked: Mask, names: NDArray[np.str_]) -> None:
    """Draw cells about the diagonal; name the strongest, and the marked ones farthest from it."""
    style.draw_points(axes, x[~marked], y[~marked], style.MUTED)
    style.draw_points(axes, x[marked], y[marked], style.COLORS[1], "significant", marker="D")
    style.mark_diagonal(axes)
    style.legend_above(axes)
    far = np.argsort(-np.abs(y - x) * marked)[: style.NAMED]
    style.name_points(axes, x, y, [int(np.hypot(x, y).argmax()), *far[marked[far]]], names)
