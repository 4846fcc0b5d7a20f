"""Losses over the steps of a run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from palinka.analyses.figures import style
from palinka.errors import InputError

# More steps than this are also drawn as their running mean.
NOISY = 50


@style.captioned(losses="Every loss over the steps of the run, in color the mean of many steps.")
def loss_curves(
    history: Mapping[str, tuple[ArrayLike, ArrayLike]], **context: Any
) -> dict[str, Figure]:
    """Draw `losses`, every loss over the steps in a panel of its own.

    `history` has for each loss, such as `total`, its steps and its values, both `(points,)`.
    """
    if not history:
        raise InputError("there are no losses to draw; expected steps and values of at least one")
    columns = min(2, len(history))
    sizes = (style.WIDTH / columns, 1.5), (0.0, 0.6)
    figure, panels = style.small_multiples(len(history), columns, *sizes, sharex=True)
    for number, (axes, (name, points)) in enumerate(zip(panels, history.items(), strict=True)):
        color = style.cycled(number)
        steps, values = (np.asarray(part, np.float64) for part in points)
        noisy = len(values) > NOISY
        axes.plot(steps, values, color=style.MUTED if noisy else color, lw=0.6 if noisy else None)
        if noisy:
            window = len(values) // 25
            means = np.full(window, 1 / window)
            smooth = (np.convolve(part, means, mode="valid") for part in (steps, values))
            axes.plot(*smooth, color=color)
        if len(values) and (values > 0).all() and values.max() > 20 * values.min():
            axes.set_yscale("log")
        axes.set(title=name, ylabel="loss")
    for axes in panels[-columns:]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    style.headline(figure, "Losses over the steps of training")
    return {"losses": figure}
