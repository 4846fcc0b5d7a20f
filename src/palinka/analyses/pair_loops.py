"""The compiled loops over pairs of rows, all in this one file.

Numba looks at the file of a loop alone to see whether its machine code is out of date: what the
loops call, and the types that they take, must not be elsewhere.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.compiled import compiled

# Consecutive units go to different copies of the histogram: rows that crowd into few bins
# would otherwise make every addition wait for the one before. `count_pair` adds up these four.
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
    digits: NDArray[np.unsignedinteger[Any]]
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
    columns: NDArray[np.int32]
    logs: NDArray[np.float64]
    digits: NDArray[np.unsignedinteger[Any]]
    other_digits: NDArray[np.unsignedinteger[Any]]
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
    digits: NDArray[np.unsignedinteger[Any]],
    edges: NDArray[np.floating[Any]],
) -> None:
    """Find the bin of each value of a row: how many of the inner edges it reaches."""
    units = rows.values.shape[1]
    for unit in range(units):
        digits[unit] = 0
    # Edge by edge, since a processor compares many values with one edge at once.
    for k in range(1, len(edges) - 1):
        edge = edges[k]
        for unit in range(units):
            digits[unit] += np.uint8(rows.values[row, unit] >= edge)


@compiled
def _mark_outliers(rows: DigitizedRows, row: int, digits: NDArray[np.unsignedinteger[Any]]) -> None:
    """Give a row's outliers the bin that is not counted."""
    for index in range(rows.starts[row], rows.starts[row + 1]):
        digits[rows.outliers[index]] = len(rows.ticks) - 1


@compiled
def digitize_rows(rows: DigitizedRows, scratch: Scratch) -> None:
    """Fill in `digits`, `low`, `high` and `status`."""
    digits = scratch.digits
    for row in range(len(rows.values)):
        for unit in range(rows.values.shape[1]):
            digits[unit] = 0
        _mark_outliers(rows, row, digits)
        low, high = _range_of_kept(rows, row, digits)
        rows.low[row] = low
        rows.high[row] = high
        rows.status[row] = _equal_edges(low, high, rows.ticks, scratch.edges)
        _digitize(rows, row, digits, scratch.edges)
        _mark_outliers(rows, row, digits)
        for unit in range(rows.values.shape[1]):
            rows.digits[row, unit] = digits[unit]


@compiled
def _range_of_kept(
    rows: DigitizedRows, row: int, digits: NDArray[np.unsignedinteger[Any]]
) -> tuple[Any, Any]:
    """The least and the largest value of a row among units whose digit is not that of outliers."""
    bins = len(rows.ticks) - 1
    low = rows.values.dtype.type(np.inf)
    high = -low
    for unit in range(rows.values.shape[1]):
        value = rows.values[row, unit]
        kept = digits[unit] != bins
        low = value if kept and value < low else low
        high = value if kept and value > high else high
    return low, high


@compiled
def _digits_in_pair(
    rows: DigitizedRows,
    row: int,
    other: int,
    digits: NDArray[np.unsignedinteger[Any]],
    edges: NDArray[np.floating[Any]],
) -> int:
    """Put the digits of a row beside another into `digits`; the row's status in this pair."""
    for unit in range(rows.values.shape[1]):
        digits[unit] = rows.digits[row, unit]
    _mark_outliers(rows, other, digits)
    moving = False
    for index in range(rows.starts[other], rows.starts[other + 1]):
        value = rows.values[row, rows.outliers[index]]
        moving |= (value == rows.low[row]) | (value == rows.high[row])
    if moving:
        low, high = _range_of_kept(rows, row, digits)
        # There may be another unit of the same value.
        if low != rows.low[row] or high != rows.high[row]:
            status = _equal_edges(low, high, rows.ticks, edges)
            _digitize(rows, row, digits, edges)
            _mark_outliers(rows, row, digits)
            _mark_outliers(rows, other, digits)
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
    for copy in range(COPIES):
        for cell in range(width * width):
            copies[copy, cell] = 0
    whole = units - units % COPIES
    for unit in range(0, whole, COPIES):
        for copy in range(COPIES):
            copies[copy, cells[unit + copy]] += 1
    for unit in range(whole, units):
        copies[0, cells[unit]] += 1
    for i in range(width - 1):
        for j in range(width - 1):
            cell = i * width + j
            scratch.counts[i, j] = (
                copies[0, cell] + copies[1, cell] + copies[2, cell] + copies[3, cell]
            )
    return COUNTED


@compiled
def fill_pairs(
    rows: DigitizedRows,
    centered: NDArray[np.float64],
    count_logs: NDArray[np.float64],
    plain: NDArray[np.bool_],
    share: NDArray[np.intp],
    scratch: Scratch,
    statistics: PairStatistics,
) -> None:
    """Fill in the pairs of some items with those after them, but for the plain ones."""
    for first in share:
        for second in range(first + 1, len(centered)):
            if plain[first, second]:
                continue
            kept = _kept(rows, first, second)
            statistics.samples[first, second] = kept
            status = count_pair(rows, first, second, scratch) if kept > 1 else CONSTANT
            if status == CONSTANT:
                statistics.covariance[first, second] = 0.0
                continue
            # A zero in the product stands for a unit left out; what remains is to center both
            # items on the units of this pair.
            product = np.dot(centered[first], centered[second])
            means = _sum_beside(rows, centered, first, second) / kept
            product -= means * _sum_beside(rows, centered, second, first)
            statistics.covariance[first, second] = product / (kept - 1)
            if status == COUNTED:
                fill_information(scratch, count_logs, first, second, statistics)
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
    scratch: Scratch,
    count_logs: NDArray[np.float64],
    first: int,
    second: int,
    statistics: PairStatistics,
) -> None:
    """Fill in the mutual information of a pair, plain and corrected.

    A cell of `c` out of `n` has `p log2(p + ε) = (c log2 c - c log2 n) / n + ε / ln 2`, up to terms
    in ε² n: one table of `c log2 c` serves pairs of any number of samples.
    """
    counts = scratch.counts
    columns = scratch.columns
    logs = scratch.logs
    bins = len(counts)
    for j in range(bins):
        columns[j] = 0
        logs[j] = 0.0
    occupied = 0
    total = 0
    margins = 0.0
    for i in range(bins):
        row = 0
        # A sum for each column: one for all would make every addition wait for the one before.
        for j in range(bins):
            count = counts[i, j]
            row += count
            columns[j] += count
            logs[j] += count_logs[count]
            occupied += count > 0
        occupied -= row > 0
        margins += count_logs[row]
        total += row
    joint = 0.0
    for j in range(bins):
        occupied -= columns[j] > 0
        margins += count_logs[columns[j]]
        joint += logs[j]
    # From here on, `occupied` is how many more cells the joint histogram fills than its margins.
    nats = 1.0 / np.log(2.0)
    information = (joint - margins + count_logs[total]) / total + EPSILON * occupied * nats
    statistics.mutual_information[first, second] = information
    statistics.corrected[first, second] = information - (occupied + 1) * nats / (2 * total)
