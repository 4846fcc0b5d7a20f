"""Figures of the logit lens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from palinka.analyses.figures import style
from palinka.analyses.logit_lens import MEASURES, LogitLens

TITLES = {
    "target_log_probability": "log probability of the target (nats)",
    "target_top1": "share with the target on top",
    "entropy": "entropy (nats)",
    "kl_to_final": "KL from the output (nats)",
}
# Characters of a token in a cell of the grid.
MAX_CHARACTERS = 6


@style.captioned(
    grid="The most probable token at every layer, from the first block's input (0) to the output, "
    "and its probability as color; bold where it is the right one. Below is the token that is "
    "read, above the one that should follow.",
    layers="Means by layer, from the first block's input (0) to the output, with bootstrap "
    "intervals over texts or templates; diamonds are layers whose block changed the target's log "
    "probability significantly.",
)
def logit_lens(
    result: LogitLens, *, shown: Sequence[int] = (), tokens: Sequence[str] = (),
    targets: Sequence[str] = (), predictions: Sequence[Sequence[str]] = (), **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw `layers`, and `grid` where tokens are given.

    `shown` are the numbers of the tokens in the grid; `tokens` the texts of those, `targets` of the
    right ones after them, and `predictions` of the most probable ones, `(layers + 1, shown)`.
    """
    figures = {"grid": _grid(result, shown, tokens, targets, predictions)} if predictions else {}
    figure, panels = style.small_multiples(len(TITLES), 2, (1.65, 1.25), (0.24, 0.6), sharex=True)
    for axes, (name, title) in zip(panels, TITLES.items(), strict=True):
        row = MEASURES.index(name)
        axes.plot(result.means[row])
        layers = range(result.means.shape[1])
        axes.fill_between(layers, result.means_low[row], result.means_high[row], alpha=0.2, lw=0)
        axes.set_title(title, fontsize="small")
        far = np.abs(result.means[row]).max() > 2.0  # less has no power of ten but 1
        if far and title.endswith("(nats)") and name != "entropy":
            # The first layers of models with tied embeddings are certain of the token itself.
            axes.set_yscale("symlog", linthresh=1.0, subs=(2, 5))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")  # often no power of ten is in the range
            axes.tick_params(axis="y", which="both", labelsize="x-small")
    found = [i + 1 for i, p in enumerate(result.p_corrected) if p <= round(1 - result.level, 12)]
    panels[0].plot(found, result.means[0, found], "D", color=style.COLORS[1])
    for axes in panels:
        axes.locator_params(axis="x", integer=True)
    figure.supxlabel("layer", fontsize="medium")
    clusters = "1 text" if result.clusters == 1 else f"{result.clusters:,} texts or templates"
    what = f"{result.tokens:,} tokens of {clusters}"
    style.headline(figure, f"What the layers predict, {what}")
    return {**figures, "layers": figure}


def _grid(
    result: LogitLens, shown: Sequence[int], tokens: Sequence[str], targets: Sequence[str],
    predictions: Sequence[Sequence[str]],
) -> Figure:  # fmt: skip
    probability = result.top_probability[:, shown, 0]
    rows, columns = probability.shape
    figure, axes = style.new_figure(style.WIDTH, 1.9 + 0.15 * rows)
    look: dict[str, Any] = {"cmap": "Blues", "vmin": 0.0, "vmax": 1.0, "aspect": "auto"}
    image = axes.imshow(probability, origin="lower", **look)
    for y, x in ((y, x) for y in range(rows) for x in range(columns)):
        bold = "bold" if result.target_rank[y, shown[x]] == 0 else "normal"
        color = "white" if probability[y, x] > 0.6 else "black"
        text = style.shortened(predictions[y][x].strip() or "␣", MAX_CHARACTERS)
        font: dict[str, Any] = {"size": 4.5, "weight": bold, "color": color}
        axes.text(x, y, text, ha="center", va="center", parse_math=False, **font)
    above = axes.secondary_xaxis("top")
    for axis, names in ((axes.xaxis, tokens), (above.xaxis, targets)):
        texts = [style.shortened(name.strip() or "␣", style.MAX_NAME) for name in names]
        axis.set_ticks(range(columns), texts, rotation=90, parse_math=False, fontsize=6)
    axes.set(ylabel="layer", xlabel="token")
    above.set_xlabel("next token")
    axes.locator_params(axis="y", nbins=13, integer=True, steps=[1, 2, 5, 10])
    figure.colorbar(image, ax=axes, label="probability", location="bottom", aspect=30, pad=0.02)
    style.headline(figure, "The most probable token at every layer")
    return figure
