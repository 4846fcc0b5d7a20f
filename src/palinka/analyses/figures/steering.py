"""Figures of steering."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from palinka.analyses.figures import style
from palinka.analyses.figures.activation_patching import outcome_label
from palinka.analyses.steering import KL_AT, Steering

# Outlines of the bands of controls.
LINES, GRAY = (":", "--", "-"), "#6E6E6E"


@style.captioned(
    dose_response="The mean effect by strength, with bootstrap intervals over templates. Gray "
    "bands are the middle part of controls of equal norm: a direction that acts as any other would "
    "lies within them.",
    side_effect="The mean effect against the divergence of the predictions on neutral text, for "
    "strengths away from 0 on either side, and of some controls (gray).",
)
def steering(result: Steering, at: str = "", **_: Any) -> dict[str, Figure]:
    """Draw `dose_response`, with bands of controls, and `side_effect`."""
    what = f"effect on the {outcome_label(result)}"
    tails = np.array([1.0 - result.level, 1.0 + result.level]) / 2.0
    dose, axes = style.new_figure(height=3.2)
    controls = zip(result.controls, result.control_effect, LINES, strict=False)
    for name, effects, line in controls:
        low, high = np.quantile(effects, tails, axis=0)
        label = name.replace("_", " ")
        axes.fill_between(result.alphas, low, high, color=style.MUTED, alpha=0.2, lw=0)
        axes.plot(result.alphas, low, line, color=GRAY, lw=0.8, label=label)
        axes.plot(result.alphas, high, line, color=GRAY, lw=0.8)
    for d, name in enumerate(result.directions):
        axes.plot(result.alphas, result.effect[d], label=name.replace("_", " "), **style.look(d))
        band: dict[str, Any] = {"color": style.cycled(d), "alpha": 0.2, "lw": 0}
        axes.fill_between(result.alphas, result.effect_low[d], result.effect_high[d], **band)
    style.mark(axes, x=0.0, y=0.0)
    axes.set(xlabel="strength (median norms of the activations)", ylabel=what)
    style.legend_above(axes, 2)
    where = f" at {at}" if at else ""
    style.headline(dose, f"Steering{where}, {result.clusters} templates")
    side, axes = style.new_figure(height=2.9)
    for effects, kls in zip(result.control_effect, result.control_kl, strict=True):
        for effect, kl in zip(effects, kls, strict=False):
            axes.plot(kl, effect, color=style.MUTED, lw=0.5, alpha=0.6)
    for d, name in enumerate(result.directions):
        axes.plot(result.kl[d], result.effect[d], label=name.replace("_", " "), **style.look(d))
    style.mark(axes, x=KL_AT, y=0.0)
    axes.set_xscale("symlog", linthresh=KL_AT)
    axes.set(xlabel="KL divergence on neutral text (nats)", ylabel=what, xlim=(0, None))
    style.legend_above(axes, 2)
    style.headline(side, f"Effect and side effect{where}")
    return {"dose_response": dose, "side_effect": side}
