"""Most pairs of items: those in which each has the bins that it has by itself.

Then an outlier, whose bin is not counted in its own row, needs no further care, and all pairs can
be counted in one flat loop. Passing arrays to a function for every pair would take as long as
counting it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.compiled import compiled
from palinka.analyses.pair_loops import COUNTED, EPSILON, DigitizedRows


def plain_pairs(rows: DigitizedRows, outlying: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which pairs right of the diagonal keep two units or more, and the edges of both items.

    Args:
        rows: The items.
        outlying: Their outliers, `(items, units)`.

    Returns:
        `(items, items)`.
    """
    items, units = outlying.shape
    usable = rows.status == COUNTED
    dropped = outlying.sum(axis=1)
    moved = dropped[:, None] + dropped + 1 >= units
    if outlying.any():
        extreme = (rows.values == rows.low[:, None]) | (rows.values == rows.high[:, None])
        for item in range(items):
            moved[item] |= outlying[:, extreme[item]].any(axis=1)
    plain: NDArray[np.bool_] = np.triu(usable[:, None] & usable & ~(moved | moved.T), k=1)
    return plain


@compiled
def fill_plain_pairs(
    digits: NDArray[np.unsignedinteger[Any]],
    width: int,
    plain: NDArray[np.bool_],
    share: NDArray[np.intp],
    count_logs: NDArray[np.float64],
    copies: NDArray[np.integer[Any]],
    information: NDArray[np.float64],
    corrected: NDArray[np.float64],
) -> None:
    """Fill in the mutual information of the plain pairs of some items with those after them.

    A cell of `c` out of `n` has `p log2(p + ε) = (c log2 c - c log2 n) / n + ε / ln 2`, up to terms
    in ε² n: one table of `c log2 c` serves pairs of any number of samples.

    Args:
        digits: The bin of every value, `(items, units)`.
        width: How many bins there are, and one for outliers.
        plain: Which pairs to fill in, `(items, items)`.
        share: The items.
        count_logs: `c log2 c` for every possible count.
        copies: Room for four joint histograms, `(4, width * width)`: consecutive units go to
            different ones, so that rows that crowd into few bins do not wait for themselves.
        information: Filled in, `(items, items)`.
        corrected: Filled in with the Miller–Madow correction, `(items, items)`.
    """
    items, units = digits.shape
    bins = width - 1
    nats = 1.0 / np.log(2.0)
    stride = digits.dtype.type(width)
    whole = units - units % 4
    cells = np.empty(units, digits.dtype)
    copy_0, copy_1, copy_2, copy_3 = copies[0], copies[1], copies[2], copies[3]
    columns = np.zeros(bins, np.int64)
    logs = np.zeros(bins)
    for first in share:
        for second in range(first + 1, items):
            if not plain[first, second]:
                continue
            for unit in range(units):
                cells[unit] = digits[first, unit] * stride + digits[second, unit]
            for cell in range(width * width):
                copy_0[cell] = 0
                copy_1[cell] = 0
                copy_2[cell] = 0
                copy_3[cell] = 0
            for unit in range(0, whole, 4):
                copy_0[cells[unit]] += 1
                copy_1[cells[unit + 1]] += 1
                copy_2[cells[unit + 2]] += 1
                copy_3[cells[unit + 3]] += 1
            for unit in range(whole, units):
                copy_0[cells[unit]] += 1

            for j in range(bins):
                columns[j] = 0
                logs[j] = 0.0
            occupied = 0
            total = 0
            margins = 0.0
            for i in range(bins):
                row = 0
                # A sum for each column: one for all would make every addition wait.
                for j in range(bins):
                    cell = i * width + j
                    count = np.int64(copy_0[cell]) + copy_1[cell] + copy_2[cell] + copy_3[cell]
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
            # Now `occupied` is how many more cells the joint histogram fills than its margins.
            bits = (joint - margins + count_logs[total]) / total + EPSILON * occupied * nats
            information[first, second] = bits
            corrected[first, second] = bits - (occupied + 1) * nats / (2 * total)
