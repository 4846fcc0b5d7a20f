"""Joint histograms of any two rows of a matrix, bin for bin those of `numpy.histogram2d`."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.pair_loops import COUNTED, count_cells, digitize, find_ranges


@dataclass(frozen=True)
class BinnedRows:
    """Rows whose bins are known, so that a pair of them need only be counted.

    Beside another row, a row loses what is an outlier there; where it loses its least or its
    largest value, its bins are others. Each range that a row takes has its own digits.

    Attributes:
        values: `(rows, units)`, float32 or float64.
        outlying: What is left out of every pair of its row, `(rows, units)`.
        bins: How many bins a row has.
        digits: The bin of each value in each range, `(ranges, units)`; outliers of the row have
            the bin `bins`, which no pair counts.
        status: `COUNTED`, `DISORDERED` or `CONSTANT`, `(ranges,)`.
        binning: Which range a row has beside another, `(rows, rows)`.
    """

    values: NDArray[np.floating[Any]]
    outlying: NDArray[np.bool_]
    bins: int
    digits: NDArray[np.unsignedinteger[Any]]
    status: NDArray[np.int64]
    binning: NDArray[np.intp]

    def status_of_pairs(self) -> NDArray[np.int64]:
        """The worse status of the two rows of every pair, `(rows, rows)`."""
        each = self.status[self.binning]
        return np.maximum(each, each.T)


def binned_rows(
    values: NDArray[np.floating[Any]], outlying: NDArray[np.bool_], bins: int
) -> BinnedRows:
    """Find the bin of every value among the inliers of its row, beside every other row.

    Args:
        values: `(rows, units)`, float32 or float64, finite.
        outlying: The values to be left out of every pair, `(rows, units)`.
        bins: How many equally wide bins each row has.
    """
    rows, units = values.shape
    binning = np.empty((rows, rows), dtype=np.intp)
    row_of = np.empty(rows * rows, dtype=np.intp)
    low, high = np.empty((2, rows * rows), dtype=values.dtype)
    ranges = find_ranges(values, outlying, binning, row_of, low, high)
    digits = np.empty((ranges, units), dtype=cell_dtype(bins + 1))
    status = np.empty(ranges, dtype=np.int64)
    ticks = np.arange(bins + 1, dtype=values.dtype)
    digitize(values, outlying, row_of[:ranges], low, high, ticks, digits, status)
    return BinnedRows(values, outlying, bins, digits, status, binning)


def cell_dtype(width: int) -> type[np.unsignedinteger[Any]]:
    """The smallest integers that number `width * width` cells: the loops run on whole registers."""
    if width * width <= 2**8:
        return np.uint8
    return np.uint16 if width * width <= 2**16 else np.uint32


def room_for_counts(rows: BinnedRows) -> NDArray[np.integer[Any]]:
    """What `count_cells` counts a pair of rows into, `(4, (bins + 1)²)`."""
    # Small integers stay in the processor's nearest memory.
    dtype = np.uint16 if rows.values.shape[1] < 2**16 else np.int32
    return np.zeros((4, (rows.bins + 1) ** 2), dtype=dtype)


def joint_histogram(rows: BinnedRows, first: int, second: int) -> NDArray[np.int64]:
    """Count two rows against each other, over the units that are outliers of neither.

    Returns:
        `(bins, bins)`, equal to what `numpy.histogram2d` counts over the same units.
    """
    one, other = rows.binning[first, second], rows.binning[second, first]
    if rows.status[one] == COUNTED == rows.status[other]:
        width = rows.bins + 1
        copies = room_for_counts(rows)
        cells = np.empty(rows.digits.shape[1], dtype=rows.digits.dtype)
        count_cells(rows.digits, one, other, width, cells, copies)
        counts: NDArray[np.int64] = copies.sum(axis=0, dtype=np.int64).reshape(width, width)
        return counts[: rows.bins, : rows.bins]
    return _numpy_histogram(rows, first, second)


def _numpy_histogram(rows: BinnedRows, first: int, second: int) -> NDArray[np.int64]:
    """The same by NumPy: slow, for rows whose edges are rounded out of order, or that vary not."""
    kept = ~(rows.outlying[first] | rows.outlying[second])
    x, y = rows.values[first, kept], rows.values[second, kept]
    counts: NDArray[np.float64] = np.histogram2d(x, y, bins=rows.bins)[0]
    return counts.astype(np.int64)
