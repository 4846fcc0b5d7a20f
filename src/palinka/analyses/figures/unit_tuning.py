"""Figures of unit tuning."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from palinka.analyses.figures import style
from palinka.analyses.result import as_float64
from palinka.analyses.unit_tuning import NAMES, UnitTuning


@style.captioned(
    t="The t statistic of every unit, by its number and in descending order. The sign shows which "
    "condition the unit prefers; beyond the dashed lines it is significant. Welch's thresholds "
    "differ by unit. A unit that is active for one item has |t| = 1 by either test.",
    activations="The activations of every item of both conditions in the units with the highest "
    "and lowest t: whether a difference of means is one of many items, or of few.",
    mean_activation="The mean activation of every unit in both conditions, and one against the "
    "other. Significant units, if any, lie off the diagonal.",
)
def unit_tuning(
    result: UnitTuning, *, a: ArrayLike | None = None, b: ArrayLike | None = None,
    conditions: Sequence[str] = ("a", "b"), items: Sequence[str] | None = None,
    units: str = "units", **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw t by unit, and the activations behind it.

    `a` and `b` are the activations of both `conditions`, `(items, units)`, and `items` the words
    of the first, followed by those of the second.
    """
    found, (first, second) = result.significant, conditions
    groups = [(~found, style.MUTED, None), (found, style.COLORS[1], None)]
    label = f"t (above 0: prefers {second})"
    figure, *panels = style.draw_by_unit(result.t, groups, units, label, units, "linear")
    finite = result.threshold[np.isfinite(result.threshold)]
    threshold = float(np.median(finite)) if len(finite) else np.inf
    for axes in panels:
        style.mark(axes, y=0.0)
        for end in (-threshold, threshold) if len(finite) else ():
            axes.axhline(end, color="black", linewidth=0.8, linestyle="--")
    rule = f"{NAMES[result.test]}, {NAMES[result.correction]}, alpha {result.alpha:g}"
    count = f"{found.sum():,} of {len(found):,} {units} tell {second} from {first}"
    style.headline(figure, f"{count} ({rule})")
    title = f"|t| above {threshold:.3g} (dashed)"
    if len(np.unique(finite.round(9))) > 1:
        title = f"|t| above its {units[:-1]}'s threshold (dashed: median {threshold:.3g})"
    once = np.isclose(np.abs(result.t), 1.0, rtol=1e-9, atol=0.0).sum()
    constant = len(found) - len(finite)
    if once or constant:
        title += f"\nuntestable: {constant:,} constant, {once:,} active for one item"
    panels[0].set_title(title)
    figures = {"t": figure}
    if a is not None and b is not None:
        named = {first: as_float64(a, "a"), second: as_float64(b, "b")}
        order = np.argsort(-result.t, kind="stable")
        figures["activations"] = style.draw_activations(named, order, units, "t", items)
        text = f"All items in the {units} that prefer {second} or {first} most"
        style.headline(figures["activations"], text)
        means = {name: each.mean(axis=0) for name, each in named.items()}
        extreme = [unit for unit in style.extremes(result.t) if found[unit]]
        figures["mean_activation"], against = style.draw_means(means, groups, extreme, units)
        marked = " (orange diamonds: significant)" * any(found)
        against.set_title(f"One against the other{marked}")
        text = f"Mean activation of all {units} in both conditions"
        style.headline(figures["mean_activation"], text)
    return figures


@style.captioned(significant="The share of units at each site that tell the two conditions apart.")
def overview(
    results: Mapping[str, UnitTuning], conditions: Sequence[str] = ("a", "b"),
    units: str = "units", **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw `significant`, the share of significant units at every site."""
    figure, axes = style.new_figure(style.WIDTH, 0.9 + 0.2 * len(results))
    shares = [100.0 * result.significant.mean() for result in results.values()]
    bars = axes.barh(list(results), shares, color=style.COLORS[0])
    axes.bar_label(bars, [f"{r.significant.sum():,}" for r in results.values()], padding=2)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(f"significant {units} (%, and their number)")
    text = f"{units.capitalize()} that tell {conditions[1]} from {conditions[0]}, by site"
    style.headline(figure, text)
    return {"significant": figure}
