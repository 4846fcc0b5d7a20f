"""Joint histograms of any two rows of a matrix, bin for bin those of `numpy.histogram2d`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.pair_loops import (
    COPIES,
    COUNTED,
    DigitizedRows,
    Scratch,
    count_pair,
    digitize_rows,
)


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
    rows = DigitizedRows(
        values=values,
        digits=np.empty(values.shape, dtype=cell_dtype(bins + 1)),
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
    width = len(rows.ticks)
    units = rows.values.shape[1]
    return Scratch(
        cells=np.empty(units, dtype=np.uint32),
        copies=np.zeros((COPIES, width * width), dtype=np.int32),
        counts=np.zeros((width - 1, width - 1), dtype=np.int32),
        columns=np.zeros(width - 1, dtype=np.int32),
        logs=np.zeros(width - 1),
        digits=np.empty(units, dtype=cell_dtype(width)),
        other_digits=np.empty(units, dtype=cell_dtype(width)),
        edges=np.empty_like(rows.ticks),
    )


def cell_dtype(width: int) -> type[np.unsignedinteger[Any]]:
    """The smallest integers that number `width * width` cells: the loops run on whole registers."""
    if width * width <= 2**8:
        return np.uint8
    return np.uint16 if width * width <= 2**16 else np.uint32


def joint_histogram(rows: DigitizedRows, first: int, second: int) -> NDArray[np.int64]:
    """Count two rows against each other, over the units that are outliers of neither.

    Returns:
        `(bins, bins)`, equal to what `numpy.histogram2d` counts over the same units.
    """
    scratch = scratch_for(rows)
    if count_pair(rows, first, second, scratch) == COUNTED:
        return scratch.counts.astype(np.int64)
    return numpy_histogram(rows, first, second)


def numpy_histogram(rows: DigitizedRows, first: int, second: int) -> NDArray[np.int64]:
    """`joint_histogram` by NumPy: slow, for the rare pairs that `count_pair` turns down."""
    bins = len(rows.ticks) - 1
    kept = (rows.digits[first] < bins) & (rows.digits[second] < bins)
    counts: NDArray[np.float64]
    counts, _, _ = np.histogram2d(rows.values[first, kept], rows.values[second, kept], bins=bins)
    return counts.astype(np.int64)
