"""Forest plots: values with their intervals, a row for each."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from palinka.analyses.figures import style

# Panels in a row, and rows of which there is room for the names.
COLUMNS, MOST = 2, 16
LEFT, PANEL, ROW = 1.1, 1.2, 0.17  # inches
# Shortest axis, as a fraction of its numbers.
NARROW = 1e-3
TITLES = {
    "forest": "Metrics with 95 % intervals",
    "control": "Metrics beside those of the control",
}


class Row(NamedTuple):
    """A value, its interval (NaN where there is none), and the values of single seeds."""

    name: str
    value: float
    low: float
    high: float
    seeds: Sequence[float] = ()


@style.captioned(
    forest="Each metric of each dictionary or recipe with its 95 % interval, over seeds and the "
    "units of resampling; circles are single seeds, gray bands are controls. Without a line there "
    "is no interval, for a reason that the tables give.",
    control="Metrics of each recipe, and of the same recipe trained on a control of the language "
    "model, with 95 % intervals; circles are single seeds. A value that the "
    "control reaches is not about the language model.",
)
def forest(
    panels: Mapping[str, Sequence[Row]], bands: Mapping[str, tuple[float, float]] | None = None,
    name: str = "forest",
) -> dict[str, Figure]:  # fmt: skip
    """Draw `forest`: a panel for each metric, with the rows of all panels in one order.

    `bands` are intervals of controls, by metric. Of many rows the first are drawn.
    """
    if not panels:  # groups of metrics may have values by task or k alone
        return {}
    every = list(dict.fromkeys(row.name for rows in panels.values() for row in rows))
    names = every[:MOST]
    size = (PANEL, 0.62 + ROW * len(names))
    figure, axes = style.small_multiples(len(panels), COLUMNS, size, (LEFT, 0.0), sharey=True)
    for panel, (metric, rows) in zip(axes, panels.items(), strict=True):
        if bands and metric in bands:
            band = panel.axvspan(*bands[metric], color=style.MUTED, alpha=0.25, lw=0)
            if not figure.legends:
                figure.legend([band], ["control"], loc="outside lower right")
        for row in rows:
            if row.name in names:
                y, color = names.index(row.name), style.cycled(names.index(row.name))
                panel.plot(row.seeds, np.full(len(row.seeds), y), "o", mfc="none", ms=3, mew=0.5,
                           color=style.MUTED)  # fmt: skip
                panel.plot([row.low, row.high], [y, y], color=color)
                panel.plot(row.value, y, "o", color=color)
        panel.set(title=fill(metric.replace("_", " "), 17), ylim=(len(names) - 0.5, -0.5))
        panel.set_yticks(range(len(names)), [style.shortened(name, 18) for name in names])
        panel.margins(x=0.12)
        low, high = panel.get_xlim()
        if (least := NARROW * max(abs(low), abs(high))) > high - low:  # rounding
            panel.set_xlim((low + high - least) / 2, (low + high + least) / 2)
        formatter = panel.xaxis.get_major_formatter()
        for bins in (3, 2, 1):  # fewer where the numbers would run into each other
            panel.locator_params(axis="x", nbins=bins)
            if max(map(len, formatter.format_ticks([*panel.get_xticks()]))) < 7:
                break
    some = f" (the first {MOST} of {len(every)} rows)" * (len(every) > MOST)
    style.headline(figure, TITLES[name] + some)
    return {name: figure}
