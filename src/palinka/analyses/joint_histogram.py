"""Joint histograms of any two rows of a matrix, bin for bin those of `numpy.histogram2d`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.pair_loops import (
    COUNTED,
    DigitizedRows,
    Scratch,
    count_pair,
    digitize_rows,
)

# Words of 64 units are combined for every pair of bins: with more bins than this, which are
# rounded up to a whole number of the widest registers, counting unit by unit is faster.
MOST_LANES = 32
LANES = 8


def digitized_rows(
    values: NDArray[np.floating[Any]], outlying: NDArray[np.bool_], bins: int
) -> DigitizedRows:
    """Find the bin of every value among the inliers of its row.

    Args:
        values: `(rows, units)`, float32 or float64, finite.
        outlying: The values to be left out of every pair, `(rows, units)`.
        bins: How many equally wide bins each row has.
    """
    counts = outlying.sum(axis=1)
    lanes = _lanes(bins)
    words = -(-values.shape[1] // 64) if lanes <= MOST_LANES else 0
    rows = DigitizedRows(
        values=values,
        digits=np.empty(values.shape, dtype=np.uint16),
        masks=np.empty((len(values), words, lanes), dtype=np.uint64),
        low=np.zeros(len(values), dtype=values.dtype),
        high=np.zeros(len(values), dtype=values.dtype),
        status=np.zeros(len(values), dtype=np.int64),
        outliers=np.nonzero(outlying)[1].astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        ticks=np.arange(bins + 1, dtype=values.dtype),
    )
    digitize_rows(rows, scratch_for(rows))
    return rows


def scratch_for(rows: DigitizedRows) -> Scratch:
    """Room for one thread that counts pairs of these rows."""
    _, words, lanes = rows.masks.shape
    return Scratch(
        counts=np.zeros((lanes, lanes), dtype=np.int64),
        digits=np.empty((2, rows.values.shape[1]), dtype=np.uint16),
        masks=np.empty((2, words, lanes), dtype=np.uint64),
        edges=np.empty_like(rows.ticks),
    )


def _lanes(bins: int) -> int:
    """Room for all bins and their sum."""
    return -(-(bins + 1) // LANES) * LANES


def joint_histogram(rows: DigitizedRows, first: int, second: int) -> NDArray[np.int64]:
    """Count two rows against each other, over the units that are outliers of neither.

    Returns:
        `(bins, bins)`, equal to what `numpy.histogram2d` counts over the same units.
    """
    scratch = scratch_for(rows)
    bins = len(rows.ticks) - 1
    if count_pair(rows, first, second, scratch) == COUNTED:
        return scratch.counts[:bins, :bins].copy()
    return numpy_histogram(rows, first, second)


def numpy_histogram(rows: DigitizedRows, first: int, second: int) -> NDArray[np.int64]:
    """`joint_histogram` by NumPy: slow, for the rare pairs that `count_pair` turns down."""
    bins = len(rows.ticks) - 1
    kept = (rows.digits[first] < bins) & (rows.digits[second] < bins)
    counts: NDArray[np.float64]
    counts, _, _ = np.histogram2d(rows.values[first, kept], rows.values[second, kept], bins=bins)
    return counts.astype(np.int64)
