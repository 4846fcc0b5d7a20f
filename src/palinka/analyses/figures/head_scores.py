"""Figures of the scores of attention heads."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from palinka.analyses.figures import style
from palinka.analyses.head_scores import MEASURES, NAMED, HeadScore, HeadScores

UNITS = {"entropy": "nats", "entropy_normalized": "0 to 1", "distance": "tokens",
         "distance_variance": "tokens²"}  # fmt: skip
# Maximum number of tokens that are named along a pattern.
MAX_TOKENS = 40


def title(name: str) -> str:
    """Name of a score in words."""
    return name.replace("_", " ").capitalize()


@style.captioned(
    maps="Every score of every head, its mean over texts, each with a scale of its own. Outlined "
    "heads attend so significantly more than a head that attends to all tokens alike; for "
    "duplicate token and induction, than in random tokens without repetition.",
    by_layer="The scores of all heads by layer: orange diamonds are significant, the line is the "
    "mean over the heads of a layer, dashed the reference that they are compared with.",
    patterns="The attention of the head with the highest score of four kinds on a text: every row "
    "is a token, and what it attends to; darker is more, up to 1. Rows sum to 1.",
)
def head_scores(
    result: HeadScores, *, patterns: Mapping[tuple[int, int], ArrayLike] | None = None,
    tokens: Sequence[str] | None = None, **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw `maps`, `by_layer`, and `patterns` where they are given.

    `patterns` are those of `result.strongest_heads()` on a text of `tokens`, by layer and head,
    `(tokens, tokens)`.
    """
    figures = {"maps": _maps(result), "by_layer": _by_layer(result)}
    return figures | ({"patterns": _patterns(result, patterns, tokens or ())} if patterns else {})


def _maps(result: HeadScores) -> Figure:
    layers, heads = next(iter(result.scores.values())).score.shape
    labels = ("layer", range(layers)), ("head", range(heads))
    size = 1.65, 0.65 + min(0.14 * layers, 2.6)
    figure, panels = style.small_multiples(len(result.scores), 2, size, (0.24, 0.4))
    for axes, (name, found) in zip(panels, result.scores.items(), strict=True):
        limit = float(found.score.max()) or 1.0
        image = style.draw_cells(axes, found.score, limit, *labels)
        image.set(cmap="Blues" if name in MEASURES else "Reds", clim=(0.0, limit))
        style.outline(axes, found.significant)
        figure.colorbar(image, ax=axes, label=UNITS.get(name, "attention"), aspect=12, pad=0.04)
        axes.set_title(_title(name, found, *found.strongest(1)))
    tested = any(np.isfinite(found.p_corrected).any() for found in result.scores.values())
    rule = f" (outlined: p ≤ {1 - result.level:.3g}, corrected for {layers * heads} heads)"
    style.headline(figure, "Scores of attention heads" + rule * tested)
    return figure


def _title(name: str, found: HeadScore, at: tuple[int, int]) -> str:
    value = f"{found.score[at]:.3g}" if found.score[at] < 100 else f"{found.score[at]:,.0f}"
    return f"{title(name)}\n{value} in L{at[0]}H{at[1]}"


def _by_layer(result: HeadScores) -> Figure:
    size, margins = (1.5, 1.15), (0.5, 0.6)
    figure, panels = style.small_multiples(len(result.scores), 2, size, margins, sharex=True)
    for axes, (name, found) in zip(panels, result.scores.items(), strict=True):
        layers = np.indices(found.score.shape)[0]
        groups = (~found.significant, style.MUTED, "o"), (found.significant, style.COLORS[1], "D")
        for chosen, color, marker in groups:
            style.draw_points(axes, layers[chosen], found.score[chosen], color, marker=marker)
        axes.plot(found.score.mean(axis=1), color=style.COLORS[0])
        axes.plot(found.reference.mean(axis=1), "--", color="black", lw=0.8)
        axes.set_title(title(name) + (f" ({UNITS[name]})" if name in UNITS else ""))
        axes.locator_params(axis="x", integer=True)
        axes.tick_params(labelbottom=axes in panels[-2:])
    figure.supxlabel("layer", fontsize="medium")
    style.headline(figure, "Scores by layer (dashed: reference)")
    return figure


def _patterns(
    result: HeadScores, patterns: Mapping[tuple[int, int], ArrayLike], tokens: Sequence[str]
) -> Figure:
    found, kinds = result.strongest_heads().items(), (*NAMED, "sink")
    shown = {name: at for name, at in found if name in kinds and at in patterns}
    names = [style.shortened(token, style.MAX_NAME) for token in tokens]
    named = 0 < len(names) <= MAX_TOKENS
    side = 0.085 * len(names) if named else 0.0
    size, layout = (max(1.5, side), max(1.5, side) + 0.25), {"sharex": True, "sharey": True}
    figure, panels = style.small_multiples(len(shown), 2, size, (0.8, 0.9), **layout)
    for axes, (name, at) in zip(panels, shown.items(), strict=True):
        axes.imshow(np.asarray(patterns[at]), cmap="Reds", vmin=0.0, vmax=1.0)
        axes.set_title(_title(name, result.scores[name], at))
        if named:
            font: dict[str, Any] = {"fontsize": 5.5, "parse_math": False}
            axes.set_xticks(range(len(names)), names, rotation=90, **font)
            axes.set_yticks(range(len(names)), names, **font)
        axes.tick_params(labelbottom=axes in panels[-2:])
    figure.supxlabel("to", fontsize="medium")
    figure.supylabel("from", fontsize="medium")
    style.headline(figure, "Attention of the strongest heads")
    return figure
