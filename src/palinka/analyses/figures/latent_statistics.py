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
    "order. Latents that never are, are dead.",
    activation="The mean activation of each latent where it is active, by its number and in "
    "descending order.",
    density_by_activation="The density of each latent against its mean activation: latents that "
    "are rare and strong are often the easiest to name.",
    latents_by_token="All latents over the tokens of the text. A column that is dark from top to "
    "bottom is a latent that is always on.",
)
def latent_statistics(
    result: LatentStatistics, *, latents: ArrayLike | None = None, units: str = "latents",
    **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw density and activation by latent and against each other, and `latents` by token.

    `latents`, the activations `(tokens, latents)`, are drawn if they are given.
    """
    alive = ~result.dead
    title = f"{alive.sum():,} of {len(alive):,} {units} alive ({100.0 * alive.mean():.3g} %)"
    figures: dict[str, Figure] = {}
    groups = [(alive, style.COLORS[0], None)]
    for name, label in (("density", DENSITY), ("activation", ACTIVATION)):
        values = getattr(result, name)
        figures[name], axes, _ = style.draw_by_unit(values, groups, units, label, f"alive {units}")
        style.draw_highlighted(axes, np.flatnonzero(result.dead), "dead")
        style.legend_above(axes)
        axes.set_title(title)
    figures["density_by_activation"], axes = style.new_figure(5.0, 4.0)
    places = result.activation[alive], result.density[alive]
    style.draw_points(axes, *places, xscale="log", yscale="log")
    axes.set(xlabel=ACTIVATION, ylabel=DENSITY, title=title)
    if latents is not None:
        matrix = as_float64(latents, "latents")
        figures["latents_by_token"], axes = style.new_figure(8.0, 4.0)
        style.draw_activations([axes], [matrix], units)
        axes.set(ylabel="token", title="{1:,} {2} at {0:,} tokens".format(*matrix.shape, units))
    return figures
