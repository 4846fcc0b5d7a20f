"""Fraction of variance unexplained against L0."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from palinka.analyses.figures import style
from palinka.errors import InputError


@style.captioned(
    l0_fvu="The fraction of variance unexplained against the latents active per token, a curve for "
    "each family. Of two curves the lower one reconstructs more with as many latents.",
)
def sparsity_frontier(
    families: Mapping[str, tuple[ArrayLike, ArrayLike]], **context: Any
) -> dict[str, Figure]:
    """Draw `l0_fvu`, the fraction of variance unexplained against the active latents.

    `families` have by name, such as an architecture's, the mean number of latents active on a row
    and the fraction of variance unexplained of each dictionary, both `(dictionaries,)`. The
    context may have a `title`, what is reconstructed.
    """
    if not families:
        raise InputError("there are no dictionaries to draw; expected L0 and FVU of at least one")
    figure, axes = style.new_figure(style.WIDTH, 3.0)
    for index, (name, points) in enumerate(families.items()):
        l0, fvu = map(np.asarray, points)
        order = np.argsort(l0)
        axes.plot(l0[order], fvu[order], label=name, ms=4.5, **style.look(index))
    axes.set(xlabel="L0: latents active per token", ylabel="fraction of variance unexplained")
    axes.set_title(context.get("title", "Error against sparsity: lower left is better"))
    axes.set_xscale("log")
    style.plain_log(axes.xaxis)
    axes.set_ylim(bottom=0, top=1.05 * axes.get_ylim()[1])
    axes.legend()
    return {"l0_fvu": figure}
