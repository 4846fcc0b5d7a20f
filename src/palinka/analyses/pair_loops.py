"""The compiled loops over pairs of rows, all in this one file.

Numba looks at the file of a loop alone to see whether its machine code is out of date: what the
loops call, and the types that they take, must not be elsewhere.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.compiled import compiled

# Consecutive units go to different copies of the histogram: rows that crowd into few bins
# would otherwise make every addition wait for the one before.
COPIES = 4

# What can become of a row in a pair, the worst last: its bins are known, subnormal values have
# rounded its edges out of order, all its kept values are equal.
COUNTED, DISORDERED, CONSTANT = 0, 1, 2


class DigitizedRows(NamedTuple):
    """Rows whose bins are known, so that a pair of them need only be counted.

    Attributes:
        values: `(rows, units)`, float32 or float64.
        digits: The bin of each value among its row's own inliers, `(rows, units)`; outliers
            have the bin `bins`, which no pair counts.
        low: The smallest inlier of each row, `(rows,)`.
        high: The largest.
        status: `COUNTED`, `DISORDERED` or `CONSTANT`, `(rows,)`.
        outliers: The outlying units of each row in turn.
        starts: Where in `outliers` each row begins, and the end, `(rows + 1,)`.
        ticks: 0, 1, …, bins in the dtype of the values.
    """

    values: NDArray[np.floating[Any]]
    digits: NDArray[np.uint16]
    low: NDArray[np.floating[Any]]
    high: NDArray[np.floating[Any]]
    status: NDArray[np.int64]
    outliers: NDArray[np.int32]
    starts: NDArray[np.int64]
    ticks: NDArray[np.floating[Any]]


class Scratch(NamedTuple):
    """What one thread writes into while it counts pairs."""

    copies: NDArray[np.int32]
    cells: NDArray[np.uint32]
    counts: NDArray[np.int32]
    digits: NDArray[np.uint16]
    other_digits: NDArray[np.uint16]
    edges: NDArray[np.floating[Any]]


# Added to every probability before its logarithm is taken.
EPSILON = 1e-12


class PairStatistics(NamedTuple):
    """The matrices of the result while they are filled."""

    mutual_information: NDArray[np.float64]
    corrected: NDArray[np.float64]
    covariance: NDArray[np.float64]
    samples: NDArray[np.float64]
    disordered: NDArray[np.bool_]


@compiled
def _equal_edges(
    low: float, high: float, ticks: NDArray[np.floating[Any]], edges: NDArray[np.floating[Any]]
) -> int:
    """Fill `edges` rounding for rounding as `numpy.linspace` does; `COUNTED` if all is well."""
    last = len(ticks) - 1
    span = high - low
    step = span / ticks[last]
    for k in range(last):
        # Every operation stays in the dtype of the values; NumPy has the second form for steps
        # that underflow.
        offset = ticks[k] * step if step != 0 else (ticks[k] / ticks[last]) * span
        edges[k] = offset + low
    edges[last] = high
    if not low < high:
        return CONSTANT
    return COUNTED if edges[last - 1] <= high else DISORDERED


@compiled
def _digitize(
    rows: DigitizedRows,
    row: int,
    digits: NDArray[np.uint16],
    edges: NDArray[np.floating[Any]],
) -> None:
    """Find the bin of each value of a row whose digit is not that of outliers."""
    bins = len(edges) - 1
    low = np.float64(edges[0])
    scale = bins / (np.float64(edges[bins]) - low)
    guessing = np.isfinite(scale)
    for unit in range(rows.values.shape[1]):
        if digits[unit] == bins:
            continue
        value = rows.values[row, unit]
        # Multiplying is quick and may be off by a bin; the edges themselves decide.
        digit = min(int((value - low) * scale), bins - 1) if guessing else 0
        while digit < bins - 1 and value >= edges[digit + 1]:
            digit += 1
        while digit > 0 and value < edges[digit]:
            digit -= 1
        digits[unit] = digit


@compiled
def digitize_rows(rows: DigitizedRows, scratch: Scratch) -> None:
    """Fill in `digits`, `low`, `high` and `status`."""
    bins = len(rows.ticks) - 1
    for row in range(len(rows.values)):
        for unit in range(rows.values.shape[1]):
            scratch.digits[unit] = 0
        for index in range(rows.starts[row], rows.starts[row + 1]):
            scratch.digits[rows.outliers[index]] = bins
        low, high = _range_of_kept(rows, row, scratch.digits)
        rows.low[row] = low
        rows.high[row] = high
        rows.status[row] = _equal_edges(low, high, rows.ticks, scratch.edges)
        _digitize(rows, row, scratch.digits, scratch.edges)
        for unit in range(rows.values.shape[1]):
            rows.digits[row, unit] = scratch.digits[unit]


@compiled
def _range_of_kept(rows: DigitizedRows, row: int, digits: NDArray[np.uint16]) -> tuple[Any, Any]:
    """The least and the largest value of a row among units whose digit is not that of outliers."""
    bins = len(rows.ticks) - 1
    low = rows.values[row, 0]
    high = low
    empty = True
    for unit in range(rows.values.shape[1]):
        if digits[unit] != bins:
            value = rows.values[row, unit]
            low = value if empty or value < low else low
            high = value if empty or value > high else high
            empty = False
    return low, high


@compiled
def _digits_in_pair(
    rows: DigitizedRows,
    row: int,
    other: int,
    digits: NDArray[np.uint16],
    edges: NDArray[np.floating[Any]],
) -> int:
    """Put the digits of a row beside another into `digits`; the row's status in this pair."""
    bins = len(rows.ticks) - 1
    for unit in range(rows.values.shape[1]):
        digits[unit] = rows.digits[row, unit]
    low = rows.low[row]
    high = rows.high[row]
    moving = False
    for index in range(rows.starts[other], rows.starts[other + 1]):
        unit = rows.outliers[index]
        value = rows.values[row, unit]
        moving |= (value == low) | (value == high)
        digits[unit] = bins
    if moving:
        low, high = _range_of_kept(rows, row, digits)
        # There may be another unit of the same value.
        if low != rows.low[row] or high != rows.high[row]:
            status = _equal_edges(low, high, rows.ticks, edges)
            _digitize(rows, row, digits, edges)
            return status
    return int(rows.status[row])


@compiled
def count_pair(rows: DigitizedRows, first: int, second: int, scratch: Scratch) -> int:
    """Count a pair of rows into `scratch.counts`; any status but `COUNTED` leaves it as it is."""
    # Of two statuses the larger one is the worse.
    status = max(
        _digits_in_pair(rows, first, second, scratch.digits, scratch.edges),
        _digits_in_pair(rows, second, first, scratch.other_digits, scratch.edges),
    )
    if status != COUNTED:
        return status
    width = len(rows.ticks)
    units = rows.values.shape[1]
    cells = scratch.cells
    copies = scratch.copies
    for unit in range(units):
        cells[unit] = scratch.digits[unit] * np.uint32(width) + scratch.other_digits[unit]
    copies[:] = 0
    whole = units - units % COPIES
    for unit in range(0, whole, COPIES):
        for copy in range(COPIES):
            copies[copy, cells[unit + copy]] += 1
    for unit in range(whole, units):
        copies[0, cells[unit]] += 1
    for i in range(width - 1):
        for j in range(width - 1):
            count = 0
            for copy in range(COPIES):
                count += copies[copy, i * width + j]
            scratch.counts[i, j] = count
    return COUNTED


@compiled
def fill_pairs(
    rows: DigitizedRows,
    centered: NDArray[np.float64],
    count_logs: NDArray[np.float64],
    share: NDArray[np.intp],
    scratch: Scratch,
    statistics: PairStatistics,
) -> None:
    """Fill in all pairs of some items with those after them."""
    for first in share:
        for second in range(first + 1, len(centered)):
            kept = _kept(rows, first, second)
            statistics.samples[first, second] = kept
            status = count_pair(rows, first, second, scratch) if kept > 1 else CONSTANT
            if status == CONSTANT:
                statistics.covariance[first, second] = 0.0
                continue
            # The product of zeros stands for a unit left out; what remains is to center both
            # items on the units of this pair.
            product = statistics.covariance[first, second]
            means = _sum_beside(rows, centered, first, second) / kept
            product -= means * _sum_beside(rows, centered, second, first)
            statistics.covariance[first, second] = product / (kept - 1)
            if status == COUNTED:
                fill_information(scratch.counts, count_logs, first, second, statistics)
            elif status == DISORDERED:
                statistics.disordered[first, second] = True


@compiled
def _kept(rows: DigitizedRows, first: int, second: int) -> int:
    """How many units are outliers of neither item."""
    bins = len(rows.ticks) - 1
    dropped = rows.starts[first + 1] - rows.starts[first]
    for index in range(rows.starts[second], rows.starts[second + 1]):
        dropped += rows.digits[first, rows.outliers[index]] != bins
    return int(rows.values.shape[1] - dropped)


@compiled
def _sum_beside(rows: DigitizedRows, centered: NDArray[np.float64], row: int, other: int) -> float:
    """The sum of a centered item over the units that are outliers of neither."""
    total = 0.0
    for index in range(rows.starts[other], rows.starts[other + 1]):
        total -= centered[row, rows.outliers[index]]
    return total


@compiled
def fill_information(
    counts: NDArray[np.int32],
    count_logs: NDArray[np.float64],
    first: int,
    second: int,
    statistics: PairStatistics,
) -> None:
    """Fill in the mutual information of a pair, plain and corrected.

    A cell of `c` out of `n` has `p log2(p + ε) = (c log2 c - c log2 n) / n + ε / ln 2`, up to terms
    in ε² n: one table of `c log2 c` serves pairs of any number of samples.
    """
    total = 0
    joint = 0.0
    occupied = 0
    rows = 0.0
    columns = 0.0
    for i in range(len(counts)):
        row = 0
        column = 0
        for j in range(len(counts)):
            count = counts[i, j]
            row += count
            column += counts[j, i]
            joint += count_logs[count]
            occupied += count > 0
        rows += count_logs[row]
        columns += count_logs[column]
        occupied -= (row > 0) + (column > 0)
        total += row
    # From here on, `occupied` is how many more cells the joint histogram fills than its margins.
    nats = 1.0 / np.log(2.0)
    information = (joint - rows - columns + count_logs[total]) / total + EPSILON * occupied * nats
    statistics.mutual_information[first, second] = information
    statistics.corrected[first, second] = information - (occupied + 1) * nats / (2 * total)
