"""The compiled loops over pairs of rows, all in this one file.

Numba looks at the file of a loop alone to see whether its machine code is out of date: what the
loops call, and the types that they take, must not be elsewhere.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.compiled import compiled

# What can become of a row in a pair, the worst last: its bins are known, subnormal values have
# rounded its edges out of order, all its kept values are equal.
COUNTED, DISORDERED, CONSTANT = 0, 1, 2


class DigitizedRows(NamedTuple):
    """Rows whose bins are known, so that a pair of them need only be counted.

    Attributes:
        values: `(rows, units)`, float32 or float64.
        digits: The bin of each value among its row's own inliers, `(rows, units)`; outliers
            have the bin `bins`, which no pair counts.
        masks: For every 64 units and each bin, which of the units are in it, one bit a unit,
            `(rows, words, lanes)`; in lane `bins` those that are in any. Without words if there
            are too many bins for this to be the faster way.
        low: The smallest inlier of each row, `(rows,)`.
        high: The largest.
        status: `COUNTED`, `DISORDERED` or `CONSTANT`, `(rows,)`.
        outliers: The outlying units of each row in turn.
        starts: Where in `outliers` each row begins, and the end, `(rows + 1,)`.
        ticks: 0, 1, …, bins in the dtype of the values.
    """

    values: NDArray[np.floating[Any]]
    digits: NDArray[np.uint16]
    masks: NDArray[np.uint64]
    low: NDArray[np.floating[Any]]
    high: NDArray[np.floating[Any]]
    status: NDArray[np.int64]
    outliers: NDArray[np.int32]
    starts: NDArray[np.int64]
    ticks: NDArray[np.floating[Any]]


class Scratch(NamedTuple):
    """What one thread writes into while it counts pairs.

    Attributes:
        counts: Of a pair, `(lanes, lanes)`; sums in row and column `bins`, beyond them nothing.
        digits: Of either row where its edges differ from those of the row alone, `(2, units)`.
        masks: The same, `(2, words, lanes)`.
        edges: `(bins + 1,)`.
    """

    counts: NDArray[np.int64]
    digits: NDArray[np.uint16]
    masks: NDArray[np.uint64]
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
    """Find the bin of each value of a row: how many of the inner edges it reaches."""
    units = rows.values.shape[1]
    for unit in range(units):
        digits[unit] = 0
    # Edge by edge, since a processor compares many values with one edge at once.
    for k in range(1, len(edges) - 1):
        edge = edges[k]
        for unit in range(units):
            digits[unit] += np.uint16(rows.values[row, unit] >= edge)


@compiled
def _mark_outliers(rows: DigitizedRows, row: int, digits: NDArray[np.uint16]) -> None:
    """Give a row's outliers the bin that is not counted."""
    for index in range(rows.starts[row], rows.starts[row + 1]):
        digits[rows.outliers[index]] = len(rows.ticks) - 1


@compiled
def _fill_masks(digits: NDArray[np.uint16], bins: int, masks: NDArray[np.uint64]) -> None:
    """Set the bit of every unit in the lane of its bin, and of all kept ones in lane `bins`."""
    words, lanes = masks.shape
    if words == 0:
        return
    for word in range(words):
        for lane in range(lanes):
            masks[word, lane] = 0
    for unit in range(len(digits)):
        masks[unit >> 6, digits[unit]] |= np.uint64(1) << np.uint64(unit & 63)
    for word in range(words):
        kept = np.uint64(0)
        for lane in range(bins):
            kept |= masks[word, lane]
        masks[word, bins] = kept


@compiled
def digitize_rows(rows: DigitizedRows, scratch: Scratch) -> None:
    """Fill in `digits`, `masks`, `low`, `high` and `status`."""
    for row in range(len(rows.values)):
        digits = rows.digits[row]
        for unit in range(len(digits)):
            digits[unit] = 0
        _mark_outliers(rows, row, digits)
        low, high = _range_of_kept(rows, row, digits)
        rows.low[row] = low
        rows.high[row] = high
        rows.status[row] = _equal_edges(low, high, rows.ticks, scratch.edges)
        _digitize(rows, row, digits, scratch.edges)
        _mark_outliers(rows, row, digits)
        _fill_masks(digits, len(rows.ticks) - 1, rows.masks[row])


@compiled
def _range_of_kept(rows: DigitizedRows, row: int, digits: NDArray[np.uint16]) -> tuple[Any, Any]:
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
def _beside(
    rows: DigitizedRows, row: int, other: int, scratch: Scratch, side: int
) -> tuple[int, NDArray[np.uint16], NDArray[np.uint64]]:
    """The status, the digits and the masks of a row in a pair with another."""
    moving = False
    for index in range(rows.starts[other], rows.starts[other + 1]):
        value = rows.values[row, rows.outliers[index]]
        moving |= (value == rows.low[row]) | (value == rows.high[row])
    if moving:
        digits = scratch.digits[side]
        for unit in range(len(digits)):
            digits[unit] = rows.digits[row, unit]
        _mark_outliers(rows, other, digits)
        low, high = _range_of_kept(rows, row, digits)
        # There may be another unit of the same value.
        if low != rows.low[row] or high != rows.high[row]:
            status = _equal_edges(low, high, rows.ticks, scratch.edges)
            if status == COUNTED:
                _digitize(rows, row, digits, scratch.edges)
                _mark_outliers(rows, row, digits)
                _fill_masks(digits, len(rows.ticks) - 1, scratch.masks[side])
            return status, digits, scratch.masks[side]
    return int(rows.status[row]), rows.digits[row], rows.masks[row]


@compiled
def count_pair(rows: DigitizedRows, first: int, second: int, scratch: Scratch) -> int:
    """Count a pair of rows into `scratch.counts`; any status but `COUNTED` leaves it as it is."""
    first_status, first_digits, first_masks = _beside(rows, first, second, scratch, 0)
    second_status, second_digits, second_masks = _beside(rows, second, first, scratch, 1)
    # Of two statuses the larger one is the worse.
    status = max(first_status, second_status)
    if status != COUNTED:
        return status
    bins = len(rows.ticks) - 1
    if len(first_masks) > 0:
        _count_bits(first_masks, second_masks, bins, scratch.counts)
    else:
        _count_units(first_digits, second_digits, scratch.counts)
        add_margins(scratch.counts, bins)
    return COUNTED


@compiled
def _set_bits(word: np.uint64) -> np.int64:
    """How many bits of a word are one."""
    # Pairs, fours and eights of bits are summed side by side: LLVM knows this pattern and puts
    # the processor's own instruction in its place.
    word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
    twos = np.uint64(0x3333333333333333)
    word = (word & twos) + ((word >> np.uint64(2)) & twos)
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def _count_bits(
    first: NDArray[np.uint64], second: NDArray[np.uint64], bins: int, counts: NDArray[np.int64]
) -> None:
    """Count a pair by the masks of its rows: sums come with it, outliers are in no mask."""
    words, lanes = second.shape
    for i in range(bins + 1):
        for j in range(lanes):
            counts[i, j] = 0
        for word in range(words):
            mask = first[word, i]
            for j in range(lanes):
                counts[i, j] += _set_bits(mask & second[word, j])


@compiled
def _count_units(
    first: NDArray[np.uint16], second: NDArray[np.uint16], counts: NDArray[np.int64]
) -> None:
    """Count a pair unit by unit, which takes no longer with more bins."""
    for i in range(len(counts)):
        for j in range(len(counts)):
            counts[i, j] = 0
    for unit in range(len(first)):
        counts[first[unit], second[unit]] += 1


@compiled
def add_margins(counts: NDArray[np.int64], bins: int) -> None:
    """Put the sums over rows, columns and both into row and column `bins`."""
    for i in range(bins + 1):
        counts[bins, i] = 0
    for i in range(bins):
        total = 0
        for j in range(bins):
            total += counts[i, j]
            counts[bins, j] += counts[i, j]
        counts[i, bins] = total
        counts[bins, bins] += total


@compiled
def fill_pairs(
    rows: DigitizedRows,
    centered: NDArray[np.float64],
    products: NDArray[np.float64],
    count_logs: NDArray[np.float64],
    share: NDArray[np.intp],
    scratch: Scratch,
    statistics: PairStatistics,
) -> None:
    """Fill in all pairs of some items with those after them."""
    bins = len(rows.ticks) - 1
    for first in share:
        for second in range(first + 1, len(centered)):
            kept = _kept(rows, first, second)
            statistics.samples[first, second] = kept
            status = count_pair(rows, first, second, scratch) if kept > 1 else CONSTANT
            if status == CONSTANT:
                continue
            # The product of zeros stands for a unit left out; what remains is to center both
            # items on the units of this pair.
            product = products[first, second]
            means = _sum_beside(rows, centered, first, second) / kept
            product -= means * _sum_beside(rows, centered, second, first)
            statistics.covariance[first, second] = product / (kept - 1)
            if status == COUNTED:
                fill_information(scratch.counts, bins, count_logs, first, second, statistics)
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
    counts: NDArray[np.int64],
    bins: int,
    count_logs: NDArray[np.float64],
    first: int,
    second: int,
    statistics: PairStatistics,
) -> None:
    """Fill in the mutual information of a pair, plain and corrected.

    A cell of `c` out of `n` has `p log2(p + ε) = (c log2 c - c log2 n) / n + ε / ln 2`, up to terms
    in ε² n: one table of `c log2 c` serves pairs of any number of samples.
    """
    joint = 0.0
    margins = 0.0
    occupied = 0
    for i in range(bins):
        # Two sums, or every addition would wait for the one before.
        even = 0.0
        odd = 0.0
        for j in range(0, bins - 1, 2):
            even += count_logs[counts[i, j]]
            odd += count_logs[counts[i, j + 1]]
        if bins % 2:
            even += count_logs[counts[i, bins - 1]]
        joint += even + odd
        for j in range(bins):
            occupied += counts[i, j] > 0
        occupied -= counts[i, bins] > 0
        occupied -= counts[bins, i] > 0
        margins += count_logs[counts[i, bins]] + count_logs[counts[bins, i]]
    total = counts[bins, bins]
    # From here on, `occupied` is how many more cells the joint histogram fills than its margins.
    nats = 1.0 / np.log(2.0)
    information = (joint - margins + count_logs[total]) / total + EPSILON * occupied * nats
    statistics.mutual_information[first, second] = information
    statistics.corrected[first, second] = information - (occupied + 1) * nats / (2 * total)
