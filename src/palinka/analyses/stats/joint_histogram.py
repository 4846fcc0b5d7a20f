"""Joint histograms of all pairs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.stats.compiled import compiled

Numbers = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]
Digits = NDArray[np.unsignedinteger[Any]]
Counts = NDArray[np.integer[Any]]

# Added to every probability before its logarithm.
EPSILON = 1e-12


@compiled
def _find_ranges(
    values: Numbers, outlying: Mask, binning: Indices, row_of: Indices, low: Numbers, high: Numbers
) -> int:
    """Fill in the range of every row beside every other, and return the number of ranges.

    Most rows have few ranges beside hundreds of others, so each is listed once, with its row, its
    least and its largest value, `(rows²,)`. Range `i` is that of row `i` by itself.
    """
    rows, units = values.shape
    nothing = values.dtype.type(np.inf)
    listed = rows
    for row in range(rows):
        first, least, most = listed, -1, -1
        for step in range(rows):
            # The row by itself comes first: beside itself, nothing more is left out.
            other = (row + step) % rows
            index = row
            if step == 0 or least < 0 or outlying[other, least] or outlying[other, most]:
                lowest, highest = nothing, -nothing
                for unit in range(units):
                    value = values[row, unit]
                    if not (outlying[row, unit] or outlying[other, unit]):
                        if value < lowest:
                            lowest = value
                            least = unit if step == 0 else least
                        if value > highest:
                            highest = value
                            most = unit if step == 0 else most
                if step > 0 and not (lowest == low[row] and highest == high[row]):
                    index = first
                    while index < listed and not (low[index] == lowest and high[index] == highest):
                        index += 1
                    listed = max(listed, index + 1)
                row_of[index], low[index], high[index] = row, lowest, highest
            binning[row, other] = index
    return int(listed)


@compiled
def _digitize(
    values: Numbers, outlying: Mask, row_of: Indices, low: Numbers, high: Numbers, ticks: Numbers,
    digits: Digits,
) -> None:  # fmt: skip
    """Fill in the bin of each value in each range, the number of inner edges that it reaches.

    `ticks` are 0, 1, …, bins in the dtype of the values; outliers get the bin `bins`.
    """
    bins = len(ticks) - 1
    edges = np.empty_like(ticks)
    units = values.shape[1]
    for index in range(len(row_of)):
        row = row_of[index]
        # Rounding for rounding as `numpy.linspace`: every operation stays in the dtype of the
        # values, and NumPy has the second form for steps that underflow.
        span = high[index] - low[index]
        step = span / ticks[bins]
        for k in range(bins):
            offset = ticks[k] * step if step != 0 else (ticks[k] / ticks[bins]) * span
            edges[k] = offset + low[index]
        for unit in range(units):
            digits[index, unit] = 0
        # Edge by edge, which is vectorized over values.
        for k in range(1, bins):
            edge = edges[k]
            for unit in range(units):
                digits[index, unit] += np.uint8(values[row, unit] >= edge)
        for unit in range(units):
            if outlying[row, unit]:
                digits[index, unit] = bins


@compiled
def _count_cells(
    digits: Digits, first: int, second: int, width: int, cells: Digits, copies: Counts
) -> None:
    """Fill in four histograms, `(4, width * width)`, which add up to that of two rows.

    Consecutive units go to different ones, so that no increment waits for the one before; `cells`
    is a buffer, `(units,)`.
    """
    units = len(cells)
    stride = digits.dtype.type(width)
    for unit in range(units):
        cells[unit] = digits[first, unit] * stride + digits[second, unit]
    copies[:] = 0
    copy_0, copy_1, copy_2, copy_3 = copies[0], copies[1], copies[2], copies[3]
    whole = units - units % 4
    for unit in range(0, whole, 4):
        copy_0[cells[unit]] += 1
        copy_1[cells[unit + 1]] += 1
        copy_2[cells[unit + 2]] += 1
        copy_3[cells[unit + 3]] += 1
    for unit in range(whole, units):
        copy_0[cells[unit]] += 1


@compiled
def fill_information(
    copies: Counts, count_logs: NDArray[np.float64], columns: Counts, logs: NDArray[np.float64],
    first: int, second: int, information: NDArray[np.float64], corrected: NDArray[np.float64],
) -> None:  # fmt: skip
    """Compute the mutual information of a pair, in bits.

    A cell of `c` out of `n` has `p log2(p + ε) = (c log2 c - c log2 n) / n + ε / ln 2`, up to terms
    in ε² n: one table of `c log2 c`, `count_logs`, serves pairs of any number of samples.

    `copies` are those of `_count_cells`; `columns` and `logs` are buffers, `(bins,)`. Both
    matrices, `(items, items)`, are filled in at the pair; `corrected` by Miller and Madow.
    """
    bins = len(columns)
    nats = 1.0 / np.log(2.0)
    columns[:], logs[:] = 0, 0.0
    occupied, total, margins = 0, 0, 0.0
    for i in range(bins):
        row = 0
        # A sum for each column, so that no addition waits for the one before.
        for j in range(bins):
            cell = i * (bins + 1) + j
            count = np.int64(copies[0, cell]) + copies[1, cell] + copies[2, cell] + copies[3, cell]
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
    # `occupied` is the number of filled cells of the joint histogram less those of its margins.
    bits = (joint - margins + count_logs[total]) / total + EPSILON * occupied * nats
    information[first, second] = bits
    corrected[first, second] = bits - (occupied + 1) * nats / (2 * total)


@compiled
def fill_pairs(
    digits: Digits, width: int, binning: Indices, varies: Mask, share: Indices,
    count_logs: NDArray[np.float64], copies: Counts, information: NDArray[np.float64],
    corrected: NDArray[np.float64],
) -> None:  # fmt: skip
    """Compute the information of the items `share` with those after them, where both vary.

    The arguments are those of `BinnedRows` and of `fill_information`; `width` is `bins + 1`.
    """
    cells = np.empty(digits.shape[1], digits.dtype)
    columns = np.empty(width - 1, np.int64)
    logs = np.empty(width - 1)
    for first in share:
        for second in range(first + 1, len(binning)):
            one, other = binning[first, second], binning[second, first]
            if varies[one] and varies[other]:
                _count_cells(digits, one, other, width, cells, copies)
                fill_information(
                    copies, count_logs, columns, logs, first, second, information, corrected
                )


@dataclass(frozen=True)
class BinnedRows:
    """Rows with the bins of their values, from which joint histograms are counted.

    Beside another row, a row loses the other's outliers; where it loses its least or its largest
    value, its bins differ. Each range of a row has its own digits.
    """

    values: Numbers  # (rows, units), float32 or float64, finite
    outlying: Mask  # of the values left out of every pair of their row, (rows, units)
    bins: int  # the number of equally wide bins of a row
    digits: Digits  # the bin of each value in each range, (ranges, units); of outliers `bins`
    varies: Mask  # of the ranges: not all kept values are equal, and there are some, (ranges,)
    binning: Indices  # the range that a row has beside another, (rows, rows)

    def constant_pairs(self) -> Mask:
        """Mask of the pairs in which a row does not vary, `(rows, rows)`."""
        each = ~self.varies[self.binning]
        return np.asarray(each | each.T)


def binned_rows(values: Numbers, outlying: Mask, bins: int) -> BinnedRows:
    """Find the bin of every value among the inliers of its row, beside every other row."""
    rows, units = values.shape
    binning, row_of = np.empty((rows, rows), dtype=np.intp), np.empty(rows * rows, dtype=np.intp)
    low, high = np.empty((2, rows * rows), dtype=values.dtype)
    ranges = _find_ranges(values, outlying, binning, row_of, low, high)
    # The smallest dtype that numbers the cells of two rows.
    dtype = np.min_scalar_type((bins + 1) ** 2 - 1)
    digits, ticks = np.empty((ranges, units), dtype=dtype), np.arange(bins + 1, dtype=values.dtype)
    _digitize(values, outlying, row_of[:ranges], low, high, ticks, digits)
    return BinnedRows(values, outlying, bins, digits, (low < high)[:ranges], binning)


def room_for_counts(rows: BinnedRows) -> Counts:
    """Buffer for the histograms of one pair, `(4, (bins + 1)²)`."""
    # Small integers stay in the processor's first cache.
    dtype = np.uint16 if rows.values.shape[1] < 2**16 else np.int32
    return np.zeros((4, (rows.bins + 1) ** 2), dtype=dtype)


def joint_histogram(rows: BinnedRows, first: int, second: int) -> NDArray[np.int64]:
    """`numpy.histogram2d` of two rows that vary, over the units that are outliers of neither."""
    one, other = rows.binning[first, second], rows.binning[second, first]
    width, copies = rows.bins + 1, room_for_counts(rows)
    _count_cells(rows.digits, one, other, width, np.empty_like(rows.digits[0]), copies)
    counts: NDArray[np.int64] = copies.sum(axis=0, dtype=np.int64).reshape(width, width)
    return counts[:-1, :-1]
