"""Latents that reappear in dictionaries of other seeds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from palinka.analyses.figures import style
from palinka.analyses.stats.dictionaries import LatentStability


@style.captioned(
    stability="The share of latents with a one-to-one partner in a dictionary of another seed, by "
    "the least cosine of partners. Gray: by chance, the range of the draws of the null. The dashed "
    "line is where chance gives 1 %, the dotted one 0.7.",
)
def latent_stability(recipes: Mapping[str, LatentStability], **context: Any) -> dict[str, Figure]:
    """Draw `stability`, the share of latents with partners by their cosine, for each recipe."""
    figure, panels = style.small_multiples(
        len(recipes), min(2, len(recipes)), (style.WIDTH, 2.2), (0.0, 0.7), sharey=True
    )
    for axes, (name, found) in zip(panels, recipes.items(), strict=True):
        cosines = np.arange(found.curve.size) / found.curve.size
        shown = cosines >= found.floor
        low, high = found.null.min(axis=0), found.null.max(axis=0)
        look: dict[str, Any] = {"color": style.MUTED, "alpha": 0.6, "lw": 0.5}
        axes.fill_between(cosines[shown], low[shown], high[shown], label="by chance", **look)
        axes.plot(cosines[shown], found.curve[shown], color=style.COLORS[0], label="other seeds")
        axes.axvline(found.threshold, color="black", lw=0.8, ls="--")
        axes.axvline(0.7, color="black", lw=0.8, ls=":")
        axes.set(xlim=(found.floor, 1.0), ylim=(0, 1), title=name)
        axes.set(xlabel="cosine with the partner", ylabel="share of latents with a partner")
        axes.legend(loc="upper right")
    style.headline(figure, "Latents that reappear with another seed")
    return {"stability": figure}
