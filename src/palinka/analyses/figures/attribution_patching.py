"""Figures of attribution patching."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from palinka.analyses.attribution_patching import AttributionPatching
from palinka.analyses.figures import style
from palinka.analyses.figures.activation_patching import COMPONENTS, UNITS, outcome_label, panels

# Worst cells that are named.
NAMED = 5


@style.captioned(
    map="The mean effect of patching each cell as estimated from gradients, and beside it that of "
    "the patch itself where it was run, at one color scale. Outlined estimates are significant "
    "after correction for all cells.",
    agreement="Estimated effects against those of the patches that were run. On the diagonal the "
    "estimate is exact; the cells farthest from it are named.",
)
def attribution_patching(result: AttributionPatching, **context: Any) -> dict[str, Figure]:
    """Draw `map`, estimates beside exact effects, and `agreement`, one against the other."""
    figures = {"map": _draw_maps(result)}
    if result.compared:
        figures["agreement"] = _draw_agreement(result)
    return figures


def _draw_maps(result: AttributionPatching) -> Figure:
    drawn, values = panels(result), {"estimate": result.estimate, "exact": result.exact}
    size = 1.65, 0.35 + float(np.clip(0.12 * max(len(p.cells) for p in drawn), 0.9, 2.6))
    figure, axes = style.small_multiples(2 * len(drawn), 2, size, (0.24, 1.1))
    limit = float(np.nanmax(np.abs([*values.values()]))) or 1.0
    for row, panel in enumerate(drawn):
        for at, (name, of) in zip(axes[2 * row : 2 * row + 2], values.items(), strict=True):
            image = style.draw_cells(at, of[panel.cells], limit, panel.rows, panel.columns)
            if name == "estimate":
                style.outline(at, result.significant[panel.cells])
            at.set_title(f"{panel.title}: {name}")
            at.set_facecolor("0.8")  # not run
    label = f"effect on the {outcome_label(result)}"
    figure.colorbar(image, ax=axes, label=label, location="bottom", aspect=30, pad=0.02)
    runs = ("Clean", "corrupted") if result.direction == "denoise" else ("Corrupted", "clean")
    blank = [] if np.isfinite(result.exact).all() else ["gray: not run"]
    what = f"{runs[0]} activations patched into {runs[1]} prompts, estimated from gradients"
    rule = f"outlined: p ≤ {1 - result.level:.3g} over {result.clusters} {result.unit()}"
    marks = "; ".join([rule] * result.tested + blank)
    style.headline(figure, f"{what} ({marks})" if marks else what)
    return figure


def _draw_agreement(result: AttributionPatching) -> Figure:
    cells, unit = result.cells(), UNITS.get(result.outcome, "")
    figure, axes = style.new_figure(style.WIDTH, 3.1)
    for index, component in enumerate(result.axes):
        own = np.array([cell["component"] == component for cell in cells])
        x, y = (
            values[own & np.isfinite(result.exact)] for values in (result.estimate, result.exact)
        )
        look = style.look(index)
        style.draw_points(axes, x, y, label=COMPONENTS.get(component, component), **look)
    axes.axline((0, 0), slope=1.0, color="black", lw=0.7)
    style.mark(axes, x=0.0, y=0.0)
    names = [f"{name} {'.'.join(map(str, at))}" for name, *at in (c.values() for c in cells)]
    run = np.flatnonzero(np.isfinite(result.exact))
    worst = np.searchsorted(run, result.worst[:NAMED])
    points = result.estimate[run], result.exact[run]
    style.name_points(axes, *points, worst, [names[i] for i in run])
    axes.set(xlabel=f"estimated effect{unit}", ylabel=f"exact effect{unit}")
    style.legend_above(axes, 2)
    found = f"r = {result.pearson:.3f}, same sign in {result.sign_agreement:.0%}"
    of = f"{result.recall_at_k:.0%} of the {result.k} largest found"
    style.headline(figure, f"Estimates against {result.compared} patches: {found}, {of}")
    return figure
