"""Text heatmaps of the units that an analysis points at."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from palinka.analyses.choose_latents import choose_latents
from palinka.analyses.result import Result
from palinka.callbacks.analysis_entry import AnalysisEntry, HeatmapEntry
from palinka.callbacks.reader import ActivationReader
from palinka.errors import InputError
from palinka.figures.heatmap import (
    LATENT_EXPONENT,
    NEGATIVE,
    POSITIVE,
    UNIT_EXPONENT,
    Heatmap,
)
from palinka.figures.text_heatmap import text_heatmap
from palinka.figures.text_heatmap_html import text_heatmap_html
from palinka.stimuli import Prepared, load_stimuli, token_bytes

_CAPTION = (
    "A text, its tokens shaded by how active each of the chosen latents or neurons is on them. The "
    "page of the same name has every value, and the token's number."
)


def draw_heatmaps(
    entry: AnalysisEntry,
    results: Mapping[str, tuple[str, Result]],
    prepared: Prepared,
    reader: ActivationReader,
) -> tuple[dict[str, Figure], dict[str, str]]:
    """Draw the units that `entry.heatmaps` asks for, if it does, over its text.

    Args:
        entry: What was analyzed.
        results: By part, the site and what was found there.
        prepared: The stimuli of the analysis.
        reader: Neurons or latents.

    Returns:
        Figures and HTML pages, by name.

    Raises:
        InputError: If the text is no passage, or the findings have no such value per unit.
    """
    wanted = entry.heatmaps
    if wanted is None:
        return {}, {}
    text = prepared
    if wanted.text is not None:
        text = load_stimuli(os.fspath(wanted.text)).prepare(reader.model.tokenizer)
    if text.kind != "passage":
        raise InputError(
            f"heatmaps are drawn over a passage, and {entry.name} has stimuli of the kind "
            f"{text.kind}; give heatmaps.text a stimuli file of the kind passage"
        )
    ids = [token for part in text.tokens for token in part]
    tokens = token_bytes(reader.model.tokenizer, ids)
    by_site = {
        site: np.concatenate(reader.every_token(text.tokens, site))
        for site in dict.fromkeys(site for site, _ in results.values())
    }
    figures: dict[str, Figure] = {}
    pages: dict[str, str] = {}
    for part, (site, result) in results.items():
        name = f"{part}/heatmaps" if part else "heatmaps"
        acts = by_site[site]
        drawn = _heatmaps(wanted, _criterion(wanted, result, acts), acts, reader.units)
        figures[name] = text_heatmap(tokens, drawn)
        figures[name].set_label(_CAPTION)
        pages[name] = text_heatmap_html(
            tokens, drawn, title=f"{entry.name} {part}".strip(), token_ids=ids
        )
    return figures, pages


def _criterion(
    wanted: HeatmapEntry, result: Result, acts: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The finding that units are ranked by, `(units,)`."""
    per_unit = {
        name: values
        for name, values in result.arrays().items()
        if values.shape == (acts.shape[1],) and values.dtype == np.float64
    }
    if wanted.by not in per_unit:
        raise InputError(
            f"heatmaps cannot rank units by {wanted.by!r}; expected one of "
            f"{', '.join(per_unit) or 'none: this analysis has no value per unit'}"
        )
    return per_unit[wanted.by]


def _heatmaps(
    wanted: HeatmapEntry,
    criterion: NDArray[np.float64],
    acts: NDArray[np.float32],
    units: str,
) -> list[Heatmap]:
    """One for each rank and each number; the smallest values are drawn in the negative color."""
    kind = units.removesuffix("s")
    exponent = wanted.exponent
    if exponent is None:
        exponent = LATENT_EXPONENT if units == "latents" else UNIT_EXPONENT
    drawn = []
    for rank in wanted.ranks:
        (unit,) = choose_latents(criterion if rank > 0 else -criterion, [abs(rank)])
        caption = f"{kind} {unit}, {wanted.by} {criterion[unit]:.4g} (rank {rank})"
        color = POSITIVE if rank > 0 else NEGATIVE
        drawn.append(Heatmap(acts[:, unit], caption, color, exponent))
    for unit in choose_latents(criterion, [], wanted.units):
        caption = f"{kind} {unit}, {wanted.by} {criterion[unit]:.4g}"
        drawn.append(Heatmap(acts[:, unit], caption, POSITIVE, exponent))
    return drawn
