"""Ratios of sums over documents, and how far they would move with other documents."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.blocks import blocks
from palinka.analyses.result import as_float64
from palinka.errors import InputError

# So many weights are drawn at once.
PIECE = 1 << 22

Ratios = Mapping[str, tuple[ArrayLike, ArrayLike]]


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its interval, which are NaN where there are none."""

    value: float
    low: float
    high: float


def document_bootstrap(
    sums: ArrayLike,
    ratios: Ratios,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Measure ratios of sums, with percentile intervals over documents drawn anew.

    Tokens of one document are alike, so that whole documents are drawn, with replacement. All
    ratios are taken of the same draws. Only the documents' sums are needed for it.

    Args:
        sums: Sums over the tokens of each document, `(documents, columns)`.
        ratios: By name the weights of the columns in the numerator and in the denominator,
            `(columns,)` each.
        level: The share of the resampled values within the interval.
        resamples: How often to draw.
        seed: Draws the documents.

    Returns:
        The ratios by name; NaN where the denominator is zero. One document gives no interval.

    Raises:
        InputError: If there are no documents, or a setting is out of range.

    Source:
        Efron (1979), Bootstrap methods: another look at the jackknife.
    """
    matrix = as_float64(sums, "sums")
    if not 0.0 < level < 1.0 or resamples < 1:
        raise InputError(f"level {level} and {resamples} resamples; give a level below 1, and some")
    names = list(ratios)
    above, below = (
        np.array([np.asarray(ratios[name][side], dtype=np.float64) for name in names]).T
        for side in (0, 1)
    )
    found = _ratios(matrix.sum(axis=0), above, below)
    documents = len(matrix)
    bounds = np.full((2, len(names)), np.nan)
    if documents > 1:
        random = np.random.default_rng(seed)
        even = np.full(documents, 1.0 / documents)
        drawn = np.concatenate(
            [
                random.multinomial(documents, even, size=piece.stop - piece.start) @ matrix
                for piece in blocks(resamples, PIECE // documents)
            ]
        )
        outside = (1.0 - level) / 2.0
        bounds = np.quantile(_ratios(drawn, above, below), [outside, 1.0 - outside], axis=0)
    return {
        name: Interval(float(found[i]), float(bounds[0, i]), float(bounds[1, i]))
        for i, name in enumerate(names)
    }


def _ratios(
    sums: NDArray[np.float64], above: NDArray[np.float64], below: NDArray[np.float64]
) -> NDArray[np.float64]:
    numerator, denominator = sums @ above, sums @ below
    return np.divide(
        numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator != 0.0
    )
