"""Figures of the removal of subspaces."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from matplotlib.figure import Figure

from palinka.analyses.figures import style
from palinka.analyses.figures.activation_patching import outcome_label
from palinka.analyses.figures.text_heatmap import Heatmap, text_heatmap
from palinka.analyses.result import Array
from palinka.analyses.subspace_removal import SubspaceRemoval


@style.captioned(
    variance="The mean effect of removing the first components at each site, against the share of "
    "variance that goes with them, with bootstrap intervals over templates. Gray points "
    "are controls: random subspaces of the same variance, or rank.",
    text="A text, its tokens shaded by the log probability that they lose without the components, "
    "in nats; gray tokens become more probable.",
)
def subspace_removal(
    result: SubspaceRemoval, tokens: Sequence[bytes] = (),
    lost: Mapping[str, Array] = MappingProxyType({}), **_: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw `variance`, effects against the variance removed by site, and `text`, if given.

    `lost` are falls of the log probability of `tokens`, by the subspace.
    """
    what = f"effect on the {outcome_label(result)}"
    count = len(result.sites)
    figure, panels = style.small_multiples(count, 1, (3.3, 2.2), (0.24, 0.5), sharex=True)
    for s, axes in enumerate(panels):
        for c, name in enumerate(result.controls):
            points = result.control_variance[c, s].ravel(), result.control_effect[c, s].ravel()
            axes.plot(*points, "x+"[c % 2], color=style.MUTED, ms=3, mew=0.6, alpha=0.6, label=name)
        x, y = result.variance_removed[s], result.effect[s]
        errors = [y - result.effect_low[s], result.effect_high[s] - y]
        axes.errorbar(x, y, errors, color=style.COLORS[0], marker="o", label="components")
        for rank, at, value in zip(result.ranks, x, y, strict=True):
            axes.annotate(str(rank), (at, value), (4, 3), textcoords="offset points", fontsize=8)
        style.mark(axes, y=0.0)
        axes.set(title=f"{result.sites[s]}\n", ylabel=what)
        style.legend_above(axes, 3)
    panels[-1].set_xlabel("share of the variance removed")
    style.headline(figure, "Removal of subspaces, with the number of components")
    if not lost:
        return {"variance": figure}
    heatmaps = [
        Heatmap(nats, f"without {name}", exponent=1, signed=True) for name, nats in lost.items()
    ]
    title = "Log probability lost without components (nats)"
    return {"variance": figure, "text": text_heatmap(tokens, heatmaps, title=title)}
