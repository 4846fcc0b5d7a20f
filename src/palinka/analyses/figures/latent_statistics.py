"""Figures of latent statistics."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.figures.style import (
    block_means,
    captioned,
    color_label,
    color_limit,
    draw_activations,
    draw_highlighted,
    draw_points,
    draw_sorted,
    new_figure,
    ranked_panels,
    style,
)
from palinka.analyses.latent_statistics import LatentStatistics
from palinka.analyses.result import as_float64

_CAPTIONS = {
    "density": (
        "On how many of the tokens each latent is active, by its number and in descending "
        "order. Latents that never are, are dead."
    ),
    "activation": (
        "The mean activation of each latent where it is active, by its number and in "
        "descending order."
    ),
    "density_by_activation": (
        "The density of each latent against its mean activation: latents that are "
        "rare and strong are often the easiest to name."
    ),
    "latents_by_token": (
        "All latents over the tokens of the text. A column that is dark from top to "
        "bottom is a latent that is always on."
    ),
}


def latent_statistics(
    result: LatentStatistics, *, latents: ArrayLike | None = None, units: str = "latents",
    **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw density and activation by latent, against each other, and the latents.

    Returns:
        `density`, `activation`, `density_by_activation` and, with the activations `latents`,
        `(tokens, latents)`, `latents_by_token`.
    """
    with style():
        figures = {
            "density": _by_latent(result, result.density, "density (% of tokens)", units),
            "activation": _by_latent(
                result, result.activation, "mean activation where active", units
            ),
            "density_by_activation": _density_by_activation(result, units),
        }
        if latents is not None:
            figures["latents_by_token"] = _image(as_float64(latents, "latents"), units)
    return captioned(figures, _CAPTIONS)


def _share_alive(result: LatentStatistics, units: str) -> str:
    alive, total = int((~result.dead).sum()), len(result.dead)
    return f"{alive:,} of {total:,} {units} alive ({result.alive:.3g} %)"


def _by_latent(
    result: LatentStatistics, values: NDArray[np.float64], label: str, units: str
) -> Figure:
    figure, by_number, by_rank = ranked_panels(len(values), units, label, f"alive {units}")
    numbers, dead = np.arange(len(values)), result.dead
    if not dead.all():
        draw_points(by_number, numbers[~dead], values[~dead], log_y=True)
        draw_sorted(by_rank, values[~dead])
    draw_highlighted(by_number, numbers[dead], "dead")
    by_number.set_title(_share_alive(result, units))
    return figure


def _density_by_activation(result: LatentStatistics, units: str) -> Figure:
    figure, axes = new_figure(5.0, 4.0)
    alive = ~result.dead
    if alive.any():
        draw_points(axes, result.activation[alive], result.density[alive], log_x=True, log_y=True)
    axes.set(
        xlabel="mean activation where active",
        ylabel="density (% of tokens)",
        title=_share_alive(result, units),
    )
    return figure


def _image(latents: NDArray[np.float64], units: str) -> Figure:
    figure, axes = new_figure(8.0, 4.0)
    image = block_means(latents)
    signed = bool((latents < 0).any())
    drawn = draw_activations(axes, image, latents.shape, color_limit(image), signed)
    label = color_label("activation", image, latents)
    figure.colorbar(drawn, ax=axes, label=label, extend="both" if signed else "max")
    axes.set(xlabel=f"number of the {units[:-1]}", ylabel="token")
    axes.set_title(f"{latents.shape[1]:,} {units} at {latents.shape[0]:,} tokens")
    return figure
