"""Figures of latent statistics."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from palinka.analyses.figures import style
from palinka.analyses.latent_statistics import LatentStatistics
from palinka.analyses.result import as_float64

DENSITY, ACTIVATION = "density (% of tokens)", "mean activation where active"


@style.captioned(
    density="On how many of the tokens each latent is active, by its number and in descending "
    "order. Those that are active on none are silent on this text.",
    activation="The mean activation of each latent where it is active, by its number and in "
    "descending order.",
    density_by_activation="The density of each latent against its mean activation: latents that "
    "are rare and strong are often the easiest to name.",
    latents_by_token="The densest and the rarest latents over the tokens of the text. A column "
    "that is dark from top to bottom is a latent that is always on.",
)
def latent_statistics(
    result: LatentStatistics, *, latents: ArrayLike | None = None, units: str = "latents",
    **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw density and activation by latent and against each other, and `latents` by token.

    `latents`, the activations `(tokens, latents)`, are drawn if they are given.
    """
    alive = ~result.dead
    text = "these tokens" if latents is None else f"these {np.shape(latents)[0]:,} tokens"
    share = f"{alive.sum():,} of {len(alive):,} {units}, {100.0 * alive.mean():.3g} %, on {text}"
    figures: dict[str, Figure] = {}
    groups = [(alive, style.COLORS[0], None)]
    # Neurons are active at every token: their density tells nothing.
    dense = (result.density == 100.0).all()
    drawn = (("density", DENSITY, "often"), ("activation", ACTIVATION, "strongly"))
    for name, label, how in drawn[int(dense) :]:
        values = getattr(result, name)
        figure, axes, _ = style.draw_by_unit(values, groups, units, label, f"active {units}")
        style.draw_highlighted(axes, np.flatnonzero(result.dead), "silent")
        style.legend_above(axes)
        style.headline(figure, f"How {how} each is active: {share}")
        figures[name] = figure
    if dense:
        return figures
    figure, axes = style.new_figure(style.WIDTH, 3.0)
    figures["density_by_activation"] = figure
    places = result.activation[alive], result.density[alive]
    style.draw_points(axes, *places, xscale="log", yscale="log")
    style.headline(figure, f"How often and how strongly each of the {units} is active")
    axes.set(xlabel=ACTIVATION, ylabel=DENSITY)
    if alive.any():
        style.plain_log(axes.xaxis)
        style.plain_log(axes.yaxis)
        outer = {*style.extremes(places[0]), *style.extremes(places[1])}
        style.name_points(axes, *places, outer, np.flatnonzero(alive))
    if latents is not None and alive.any():
        matrix = as_float64(latents, "latents")
        order = np.argsort(-result.density, kind="stable")[: alive.sum()]
        figure = style.draw_activations({"": matrix}, order, units, "density", row="token")
        style.headline(figure, f"The densest and the rarest {units}, token by token")
        figures["latents_by_token"] = figure
    return figures
