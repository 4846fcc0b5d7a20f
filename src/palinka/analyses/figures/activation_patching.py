"""Figures of activation patching."""

from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from palinka.analyses.figures import style
from palinka.analyses.result import Array
from palinka.analyses.stats.controls import Controlled
from palinka.analyses.stats.effects import Effects

COMPONENTS = {
    "resid": "residual stream", "resid_mid": "residual stream before the MLP", "heads": "heads",
    "attn.out": "attention output", "mlp.out": "MLP output", "q": "queries", "k": "keys",
    "v": "values", "pattern": "attention pattern",
}  # fmt: skip
UNITS = dict.fromkeys(("log_probability", "kl", "cross_entropy"), " (nats)")
UNITS["logit_difference"] = " (logits)"
# Lines of a panel, and rows of a map, those with the largest effects.
MAX_LINES, MAX_UNITS = 5, 24


@style.captioned(
    map="The mean effect of patching each cell, at one color scale for all components. Outlined "
    "cells are significant after correction for all cells. Recovery is the part of the gap between "
    "clean and corrupted prompts; effects of cells do not add up.",
    layers="The mean outcome with the patch, by layer, and that of the clean and the corrupted "
    "prompts (dashed), at the positions with the largest effects. Bands are bootstrap intervals "
    "over templates or prompts; points with a marker are significant.",
)
def activation_patching(result: Effects, **context: Any) -> dict[str, Figure]:
    """Draw `map`, all cells, and for layers by positions `layers`, the outcome as lines."""
    denoise = result.direction == "denoise"
    known = np.isfinite(result.recovery).all() and not result.gap_low <= 0 <= result.gap_high
    values, label = result.effect, f"effect on the {outcome_label(result)}"
    if known and denoise:
        values, label = result.recovery, "recovery (0: as corrupted, 1: as clean)"
    elif known:
        values, label = 1.0 - result.recovery, "part of the gap lost (0: as clean, 1: as corrupted)"
    what = "{} activations patched into {} prompts".format(*runs(result))
    figures = {"map": draw_maps(result, {"": values}, label, what)}
    if lines := [panel for panel in panels(result) if panel.columns[0] == "position"]:
        figures["layers"] = _draw_lines(result, lines, what)
    return figures


def runs(result: Effects) -> tuple[str, str]:
    """The runs that a patch comes from and goes into, for a headline."""
    return ("Clean", "corrupted") if result.direction == "denoise" else ("Corrupted", "clean")


def outcome_label(result: Effects | Controlled) -> str:
    """The outcome in words, with its unit."""
    name = "KL divergence" if result.outcome == "kl" else result.outcome.replace("_", " ")
    return name + UNITS.get(result.outcome, "")


def short_name(cell: dict[str, Any], *hidden: str) -> str:
    """A cell of `cells` for a point, such as `heads 4.2`, without some of its axes."""
    component, *labels = (str(x) for axis, x in cell.items() if axis not in hidden)
    return f"{component} {'.'.join(labels)}"


class Panel(NamedTuple):
    """Cells that are drawn together."""

    title: str
    cells: NDArray[np.int64]  # their numbers, `(rows, columns)`
    rows: tuple[str, Any]  # name and labels
    columns: tuple[str, Any]


def panels(result: Effects, *components: str) -> list[Panel]:
    """Panels of layers (rows) by the last axis (columns), one for each entry of the others.

    Units are rows, those with the largest effects, the largest on top. By default of all
    components.
    """
    found, maps = [], result.maps(np.arange(len(result.effect)))
    for component in components or maps:
        numbers = maps[component]
        axes, site = list(result.axes[component].items()), result.axes[component].get("site", ())
        if site:  # one
            numbers = numbers.take(0, axis=[name for name, _ in axes].index("site"))
            axes = [axis for axis in axes if axis[0] != "site"]
        name, labels = axes[-1]
        if of_units := name in ("neuron", "latent"):
            strength = np.abs(result.effect[numbers]).reshape(-1, len(labels)).max(axis=0)
            largest = np.argsort(-strength, kind="stable")[MAX_UNITS - 1 :: -1]
            numbers, several = numbers[..., largest].T, len(labels) > MAX_UNITS
            shown = f"{name} ({MAX_UNITS} of {len(labels):,})" if several else name
            axes = [(shown, [str(labels[i]) for i in largest]), *axes[:-1]]
        if name == "layer" or (of_units and len(axes) == 1):
            numbers, axes = numbers[..., None], [*axes, (", ".join(site), [""])]
        if len(axes) == 1:
            numbers, axes = numbers[None], [("", [""]), *axes]
        row = next((i for i, (name, _) in enumerate(axes) if name == "layer"), 0)
        others = [axis for i, axis in enumerate(axes[:-1]) if i != row]
        split = np.moveaxis(numbers, row, -2).reshape(-1, len(axes[row][1]), numbers.shape[-1])
        for cells, labels in zip(split, product(*(each for _, each in others)), strict=True):
            named = zip(others, labels, strict=True)
            at = [x if isinstance(x, str) else f"{name} {x}" for (name, _), x in named]
            title = ", ".join(filter(None, [COMPONENTS.get(component, component), *at]))
            found.append(Panel(title, cells, axes[row], axes[-1]))
    return found


def draw_maps(
    result: Effects, values: Mapping[str, Array], label: str, what: str, *components: str
) -> Figure:
    """Draw values of every cell, `(cells,)`, by name and at one scale, beside each other.

    Outlined is what is significant of the first ones. `what` they are is the headline. By default
    of all components; NaN are gray, as not run.
    """
    drawn = panels(result, *components)
    crowded = any(sum(len(str(label)) for label in panel.columns[1]) > 26 for panel in drawn)
    columns = 1 if len(values) == 1 and (crowded or len(drawn) == 1) else 2
    size = 3.3 / columns, 0.35 + float(np.clip(0.14 * max(len(p.cells) for p in drawn), 0.7, 2.6))
    figure, every = style.small_multiples(len(drawn) * len(values), columns, size, (0.24, 1.1))
    shown = np.concatenate([panel.cells.ravel() for panel in drawn])
    limit = float(np.nanmax([np.abs(each[shown]) for each in values.values()])) or 1.0
    for axes, (panel, (name, of)) in zip(every, product(drawn, values.items()), strict=True):
        image = style.draw_cells(axes, of[panel.cells], limit, panel.rows, panel.columns)
        if name == next(iter(values)):
            style.outline(axes, result.significant[panel.cells])
        axes.set_title(": ".join(filter(None, [panel.title, name])))
        axes.set_facecolor("0.8")
    figure.colorbar(image, ax=every, label=label, location="bottom", aspect=30, pad=0.02)
    rule = f"outlined: p ≤ {1 - result.level:.3g} over {result.clusters} {result.unit()}"
    marks = [f"{rule}, corrected for {len(result.effect):,} cells"] * result.tested
    marks += ["gray: not run"] * any(np.isnan(each).any() for each in values.values())
    style.headline(figure, what + f" ({'; '.join(marks)})" * bool(marks))
    return figure


def _draw_lines(result: Effects, drawn: list[Panel], what: str) -> Figure:
    base = result.corrupted if result.direction == "denoise" else result.clean
    figure, axes = style.small_multiples(len(drawn), 1, (3.3, 1.8), (0.24, 0.5), sharey=True)
    for at, panel in zip(axes, drawn, strict=True):
        strength = np.abs(result.effect[panel.cells]).max(axis=0)
        for index, column in enumerate(sorted(np.argsort(-strength)[:MAX_LINES])):
            cells, look = panel.cells[:, column], style.look(index)
            look |= {"markevery": result.significant[cells].tolist()}
            layers, label = np.arange(len(cells)), str(panel.columns[1][column])
            at.plot(layers, base + result.effect[cells], label=label, **look)
            ends = base + result.effect_low[cells], base + result.effect_high[cells]
            at.fill_between(layers, *ends, color=look["color"], alpha=0.15, lw=0)
        beside: dict[str, Any] = {"transform": at.get_yaxis_transform(), "fontsize": 6.5}
        for name in ("clean", "corrupted"):
            at.axhline(level := getattr(result, name), color="black", lw=0.8, ls="--")
            at.text(1.01, level, name, va="center", **beside)
        at.set(title=f"{panel.title}\n", ylabel=outcome_label(result))
        style.legend_above(at, MAX_LINES)
        at.locator_params(axis="x", integer=True)
    axes[-1].set_xlabel("layer")
    style.headline(figure, what)
    return figure
