"""Figures of attribution patching."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from palinka.analyses.attribution_patching import AttributionPatching
from palinka.analyses.figures import style
from palinka.analyses.figures.activation_patching import (
    COMPONENTS,
    UNITS,
    draw_maps,
    outcome_label,
    runs,
    short_name,
)

NAMED = 5  # of the worst cells


@style.captioned(
    map="The mean effect of patching each cell as estimated from gradients, and beside it that of "
    "the patch itself where it was run, at one color scale. Outlined estimates are significant "
    "after correction for all cells.",
    agreement="Estimated effects against those of the patches that were run. On the diagonal the "
    "estimate is exact; the cells farthest from it are named.",
)
def attribution_patching(result: AttributionPatching, **context: Any) -> dict[str, Figure]:
    """Draw `map`, estimates beside exact effects, and `agreement`, one against the other."""
    what = "{} activations patched into {} prompts, estimated from gradients".format(*runs(result))
    values = {"estimate": result.estimate, "exact": result.exact}
    figures = {"map": draw_maps(result, values, f"effect on the {outcome_label(result)}", what)}
    if result.compared:
        figures["agreement"] = _draw_agreement(result)
    return figures


def _draw_agreement(result: AttributionPatching) -> Figure:
    cells, unit = result.cells(), UNITS.get(result.outcome, "")
    run = np.flatnonzero(np.isfinite(result.exact))
    x, y, of = result.estimate[run], result.exact[run], [cells[i]["component"] for i in run]
    figure, axes = style.new_figure(style.WIDTH, 3.1)
    for index, component in enumerate(result.axes):
        own, label = np.array(of) == component, COMPONENTS.get(component, component)
        style.draw_points(axes, x[own], y[own], label=label, **style.look(index))
    style.mark_diagonal(axes)
    worst = np.searchsorted(run, result.worst[:NAMED])
    style.name_points(axes, x, y, worst, [short_name(cells[i], "site") for i in run])
    axes.set(xlabel=f"estimated effect{unit}", ylabel=f"exact effect{unit}")
    style.legend_above(axes, 2)
    found = f"r = {result.pearson:.3f}, same sign in {result.sign_agreement:.0%}"
    of_k = f"{result.recall_at_k:.0%} of the {result.k} largest found"
    style.headline(figure, f"Estimates against {result.compared} patches: {found}, {of_k}")
    return figure
