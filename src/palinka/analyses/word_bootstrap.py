"""How far the score of two similarity matrices would move with other words."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.kendall import dense_ranks, kendall_tau_a
from palinka.analyses.matrix_comparison import chunks, triangle

# A resample with less variance than this share of its mean square has one value, and rounding.
NO_VARIANCE = 1e-9


def resampled_scores(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    compare: Literal["pearson", "spearman", "kendall"],
    strata: Sequence[NDArray[np.int64]],
    resamples: int,
    random: np.random.Generator,
) -> NDArray[np.float64]:
    """Scores of two matrices whose rows and columns are resampled with replacement.

    The two factors of a similarity matrix, its rows and its columns, are the same words: one
    draw resamples both. Words that were drawn more often weigh more; a word is never compared
    with its own copy, whose similarity of 1 in both matrices would raise every score.
    There is one measurement per matrix, so there is no second factor of subjects. As with any
    resampling of two crossed factors, noise that belongs to single pairs of words rather than
    to words is counted more than once: the spread is then too wide rather than too narrow.

    Args:
        x: `(items, items)`.
        y: `(items, items)`.
        compare: As in `compare_matrices`.
        strata: Items within which to draw: as many are drawn from each as it has.
        resamples: How many.
        random: Where the resamples come from.

    Returns:
        `(resamples,)`; NaN for resamples in which the score is not defined.

    Source:
        Owen (2007) for resampling rows and columns; Schütt et al. (2023) for words as a factor.
    """
    rows, columns = np.triu_indices(len(x), 1)
    pairs_x, pairs_y = triangle(x), triangle(y)
    scores = np.empty(resamples)
    for chunk in chunks(resamples, len(rows), "Resampling words"):
        drawn = np.zeros((chunk.stop - chunk.start, len(x)))
        for items in strata:
            even = np.full(len(items), 1.0 / len(items))
            drawn[:, items] = random.multinomial(len(items), even, size=len(drawn))
        weights = drawn[:, rows] * drawn[:, columns]
        if compare == "kendall":
            ranks_x, ranks_y = dense_ranks(pairs_x), dense_ranks(pairs_y)
            scores[chunk] = [kendall_tau_a(ranks_x, ranks_y, weight) for weight in weights]
        elif compare == "spearman":
            scores[chunk] = _correlations(
                _weighted_ranks(pairs_x, weights), _weighted_ranks(pairs_y, weights), weights
            )
        else:
            scores[chunk] = _correlations(pairs_x[None, :], pairs_y[None, :], weights)
    return scores


def _weighted_ranks(
    values: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mid-ranks, less a constant, in samples where each value occurs as often as it weighs."""
    order = np.argsort(values, kind="stable")
    rank = dense_ranks(values)
    first = np.flatnonzero(np.diff(rank[order], prepend=-1))
    together = np.add.reduceat(weights[:, order], first, axis=1)
    middle = np.cumsum(together, axis=1) - together / 2.0
    return middle[:, rank]


def _correlations(
    x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Pearson correlation under each row of weights; all `(draws, pairs)`, or `(1, pairs)`."""
    total = weights.sum(axis=1)

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = weights @ values[0] if len(values) == 1 else (weights * values).sum(axis=1)
        with np.errstate(invalid="ignore"):  # a single word, drawn over and over: no pairs
            return np.asarray(sums / total)

    # Centered roughly, so that the moments about zero lose no digits.
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    mean_x, mean_y, square_x, square_y = mean(x), mean(y), mean(x * x), mean(y * y)
    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    defined = (variance_x > NO_VARIANCE * square_x) & (variance_y > NO_VARIANCE * square_y)
    covariance = mean(x * y) - mean_x * mean_y
    scores = np.full(len(weights), np.nan)
    scores[defined] = covariance[defined] / np.sqrt(variance_x[defined] * variance_y[defined])
    np.clip(scores, -1.0, 1.0, out=scores)
    return scores
