"""Pictures of which latents prefer a category, and where in a text they are active."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.category_score import CategoryScore
from palinka.analyses.choose_latents import choose_latents
from palinka.analyses.latent_statistics import latent_statistics
from palinka.analyses.result import as_float64
from palinka.errors import InputError
from palinka.figures.by_unit import draw_apart, draw_points, draw_sorted, legend_above
from palinka.figures.heatmap import LATENT_EXPONENT, UNIT_EXPONENT, Heatmap
from palinka.figures.style import HUES, MUTED, new_figure, style
from palinka.figures.text_heatmap import text_heatmap
from palinka.figures.text_heatmap_html import text_heatmap_html

Criterion = Literal["score", "auc", "activation", "density", "mass"]
RANKS = (1, 10, 31)
ALPHA = 0.05
SCORE = "score (target mean / other mean)"
# Around the latent with the highest score.
RING: dict[str, Any] = {"marker": "o", "ms": 8, "mfc": "none", "mec": HUES[1], "ls": ""}


def category_score(
    result: CategoryScore, *, units: str = "latents", **context: Any
) -> dict[str, Figure]:
    """Draw the score of every latent, its AUC and p-value, and heatmaps of chosen latents.

    Args:
        result: What `analyses.category_score` found.
        units: What the axes call the latents.
        **context: What `chosen_heatmaps` takes; heatmaps need `tokens` and `latents`.

    Returns:
        `score`; with AUCs `auc`; with a text `heatmaps`.
    """
    with style():
        figures = {"score": _scores(result, units)}
        if result.auc is not None:
            figures["auc"] = _score_against_auc(result, result.auc, units)
        for figure in figures.values():
            # Above all, that a ratio of means says little where activations have two signs.
            if result.notes:
                figure.suptitle("; ".join(result.notes), fontsize="small", style="italic")
        heatmaps = chosen_heatmaps(result, units=units, **context)
        if heatmaps:
            figures["heatmaps"] = text_heatmap(context["tokens"], heatmaps)
    return figures


def pages(
    result: CategoryScore, *, token_ids: Sequence[int] | None = None, units: str = "latents",
    **context: Any,
) -> dict[str, str]:  # fmt: skip
    """The heatmaps of `category_score` as a page of HTML.

    Args:
        result: What `analyses.category_score` found.
        token_ids: The ids of the tokens, `(tokens,)`.
        units: What the page calls the latents.
        **context: What `chosen_heatmaps` takes.

    Returns:
        `heatmaps`, or nothing where there is no text.
    """
    heatmaps = chosen_heatmaps(result, units=units, **context)
    if not heatmaps:
        return {}
    title = f"Chosen {units}"
    return {
        "heatmaps": text_heatmap_html(context["tokens"], heatmaps, title=title, token_ids=token_ids)
    }


def chosen_heatmaps(
    result: CategoryScore,
    *,
    tokens: Sequence[str | bytes] | None = None,
    latents: ArrayLike | None = None,
    passage: ArrayLike | None = None,
    by: Criterion = "score",
    ranks: Sequence[int] | None = None,
    numbers: Sequence[int] = (),
    units: str = "latents",
    **context: Any,
) -> list[Heatmap]:
    """Choose latents and prepare their heatmaps on a text.

    Args:
        result: What `analyses.category_score` found.
        tokens: The text; without it there are no heatmaps.
        latents: The activations that the analysis was given, `(tokens, latents)`.
        passage: The activations on the text, if it is another one, `(tokens, latents)`.
        by: What ranks are counted under: score, AUC, activation, density or mass.
        ranks: Which ranks, from 1; 1, 10 and 31 if not given.
        numbers: Further latents by their index.
        units: What captions call the latents.
        **context: Ignored.

    Raises:
        InputError: If `by` is not a criterion, or the result has no AUCs to rank by.
    """
    if tokens is None or latents is None:
        return []
    activations = as_float64(latents, "latents")
    on_text = activations if passage is None else as_float64(passage, "passage")
    criteria = _criteria(result, activations)
    if by not in criteria:
        raise InputError(
            f"latents were to be ranked by {by!r}; expected one of {', '.join(get_args(Criterion))}"
            ", where auc needs detector: true or permutations"
        )
    if ranks is None:
        ranks = [rank for rank in RANKS if rank <= len(result.score)]
    chosen = choose_latents(criteria[by], ranks, numbers)
    order = list(np.argsort(-criteria[by], kind="stable"))
    exponent = LATENT_EXPONENT if units == "latents" else UNIT_EXPONENT
    shown = dict.fromkeys(("score", by))
    return [
        Heatmap(
            on_text[:, latent],
            f"{units[:-1]} {latent}: rank {order.index(latent) + 1} by {by}, "
            + ", ".join(f"{name} {criteria[name][latent]:.3g}" for name in shown),
            exponent=exponent,
        )
        for latent in chosen
    ]


def _criteria(
    result: CategoryScore, latents: NDArray[np.float64]
) -> Mapping[str, NDArray[np.float64]]:
    statistics = latent_statistics(latents)
    criteria = {
        "score": result.score,
        "activation": statistics.activation,
        "density": statistics.density,
        "mass": statistics.mass,
    }
    return criteria if result.auc is None else {**criteria, "auc": result.auc}


def _scores(result: CategoryScore, units: str) -> Figure:
    figure, (by_number, by_rank) = new_figure(8.0, 3.6, ncols=2, sharey=True, width_ratios=(2.2, 1))
    numbers, positive = np.arange(len(result.score)), result.score > 0
    if positive.any():
        draw_points(by_number, numbers[positive], result.score[positive], log_y=True)
        draw_sorted(by_rank, result.score[positive])
        by_number.plot(result.best, result.best_score, **RING)
    for axes in (by_number, by_rank):
        axes.axhline(1.0, color=MUTED, lw=0.8, zorder=0)
    threshold = _significant_score(result)
    if threshold is not None:
        by_number.axhline(threshold, color=HUES[1], lw=0.9, ls="--", label=f"p ≤ {ALPHA}")
    by_number.set(
        xlabel=f"number of the {units[:-1]}",
        ylabel=SCORE,
        xlim=(-0.5, len(result.score) - 0.5),
        title=_headline(result, units),
    )
    draw_apart(by_number, numbers[~positive], "score 0", MUTED)
    if by_number.get_legend_handles_labels()[0]:
        legend_above(by_number, columns=2)
    by_rank.set(xlabel=f"share of the {units} above 0 (%)", title="in descending order")
    return figure


def _score_against_auc(result: CategoryScore, auc: NDArray[np.float64], units: str) -> Figure:
    figure, axes = new_figure(5.4, 4.0)
    positive = result.score > 0
    if positive.any():
        draw_points(axes, result.score[positive], auc[positive], log_x=True)
        axes.plot(result.best_score, result.best_auc, **RING)
    axes.axhline(0.5, color=MUTED, lw=0.8, zorder=0)
    threshold = _significant_score(result)
    if threshold is not None:
        axes.axvline(threshold, color=HUES[1], lw=0.9, ls="--", label=f"p ≤ {ALPHA}")
        legend_above(axes)
    axes.set(
        xlabel=SCORE,
        ylabel="AUC as a detector of the category",
        title=_headline(result, units),
    )
    return figure


def _significant_score(result: CategoryScore) -> float | None:
    """The lowest score with a p-value of 0.05 or less over all latents together."""
    if result.p_value is None or not (result.p_value <= ALPHA).any():
        return None
    return float(result.score[result.p_value <= ALPHA].min())


def _headline(result: CategoryScore, units: str) -> str:
    parts = [f"{units[:-1]} {result.best:,} scores {result.best_score:.3g}"]
    if result.best_auc is not None:
        parts.append(f"AUC {result.best_auc:.3g}")
    if result.best_p_value is not None:
        parts.append(f"p = {result.best_p_value:.2g}")
    return ", ".join(parts)
