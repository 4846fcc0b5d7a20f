"""Compiled loops."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from palinka.autoencoders.kernels.dispatch import compiled

Floats = NDArray[np.floating[Any]]
Bits = NDArray[np.signedinteger[Any]]
Indices = NDArray[np.int32]
Integers = NDArray[np.int64]

# A row is gone through in tiles of 16 times 16 values. Of each tile the largest of every 16th value
# is noted: as many at a time as a processor compares, without looking from one to its neighbor.
LANES = 16
TILE = LANES * 16
# Columns that are summed up together: their sums stay in the nearest cache.
SLICE = 256


@compiled()
def _kth(bits: Bits, n: int, k: int, low: int, high: int) -> int:
    """What exactly `k` of the first `n` are not below, or, with ties, the k-th largest.

    By bisection from `low`, which `k` or more are not below, and `high`, the largest. A processor
    compares many at a time, so that this is faster than sorting.
    """
    while low < high:
        middle = low + (high - low + 1) // 2
        count = 0
        for i in range(n):
            count += bits[i] >= middle
        if count == k:
            return middle
        if count > k:
            low = middle
        else:
            high = middle - 1
    return low


@compiled()
def _maxima(row: Bits, largest: Bits, infinity: int) -> int:
    """Write the largest of every lane of every tile of a row, 0 if all are negative.

    Args:
        row: The bits of its values.
        largest: Written, as many as `_lanes` says.
        infinity: The bits of infinity; more, but for the sign, is NaN.

    Returns:
        The largest of the row, or -1 if it has a NaN.
    """
    width = len(row)
    without_sign = row.dtype.type(infinity | (infinity - 1))
    sizes = np.zeros(LANES, row.dtype)
    for tile in range(width // TILE):
        source = row[tile * TILE : (tile + 1) * TILE]
        target = largest[tile * LANES : (tile + 1) * LANES]
        for lane in range(LANES):
            best, size = row.dtype.type(0), sizes[lane]
            for depth in range(TILE // LANES):  # a loop of known length becomes few instructions
                value = source[depth * LANES + lane]
                best = max(best, value)
                size = max(size, value & without_sign)
            target[lane], sizes[lane] = best, size
    done = width // TILE * TILE
    if done < width:
        target = largest[done // TILE * LANES :]
        target[:] = 0
        for i in range(done, width):
            target[i % LANES] = max(target[i % LANES], row[i])
            sizes[i % LANES] = max(sizes[i % LANES], row[i] & without_sign)
    return -1 if sizes.max() > infinity else int(largest.max())


@compiled()
def _lanes(width: int) -> int:
    """How many numbers `_maxima` writes of a row."""
    return (width + TILE - 1) // TILE * LANES


@compiled()
def _candidates(
    row: Bits, largest: Bits, low: int, candidates: Bits, columns: Indices, pruned: bool
) -> int:
    """Find what of a row is not below `low`, by columns; how many there are.

    Args:
        row: The bits of its values.
        largest: What `_maxima` has written.
        low: What is looked for.
        candidates: Written: what was found.
        columns: Written: where.
        pruned: Whether few are, so that most lanes need not be looked at.
    """
    width, n = len(row), 0
    if not pruned:
        for i in range(width):
            if row[i] >= low:
                candidates[n], columns[n] = row[i], i
                n += 1
        return n
    for tile in range(len(largest) // LANES):
        first = n
        for lane in range(LANES):
            if largest[tile * LANES + lane] >= low:
                for i in range(tile * TILE + lane, min(width, (tile + 1) * TILE), LANES):
                    if row[i] >= low:
                        place = n  # by columns: those of later lanes may come before it
                        while place > first and columns[place - 1] > i:
                            candidates[place] = candidates[place - 1]
                            columns[place] = columns[place - 1]
                            place -= 1
                        candidates[place], columns[place] = row[i], i
                        n += 1
    return n


@compiled()
def keep_positive(start: int, stop: int, values: Floats, bits: Bits, k: int) -> None:
    """Zero whatever of a row is not positive, or is smaller than its k-th largest.

    Args:
        start: First row.
        stop: Row after the last.
        values: `(rows, width)`, changed in place; a row with a NaN keeps all that is positive.
        bits: The same memory as integers.
        k: How many to keep; more where values tie with the k-th largest.
    """
    width = values.shape[1]
    largest = np.empty(_lanes(width), bits.dtype)
    infinity = np.full(1, np.inf, values.dtype).view(bits.dtype)[0]
    for row in range(start, stop):
        top = _maxima(bits[row], largest, infinity)
        if top < 0:
            for i in range(width):
                if values[row, i] <= 0:
                    values[row, i] = 0
            continue
        threshold = max(1, _kth(bits[row], width, k, 0, top))
        for i in range(width):
            bits[row, i] = bits[row, i] if bits[row, i] >= threshold else 0


@compiled()
def select_positive(
    start: int,
    stop: int,
    values: Floats,
    bits: Bits,
    k: int,
    first: int,
    kept: Floats,
    indices: Indices,
    counts: Integers,
) -> None:
    """Find the positive values of each row that are at least its k-th largest, by columns.

    Args:
        start: First row.
        stop: Row after the last.
        values: `(rows, width)`.
        bits: The same memory as integers.
        k: How many to keep; more where values tie with the k-th largest.
        first: Row of the output for the first of `values`.
        kept: The values, `(output rows, room)`, zero where there are fewer. A row with a NaN
            keeps one NaN.
        indices: Their columns, of the same shape, zero where there are fewer.
        counts: How many there are, `(output rows,)`; those beyond the room are not written.
    """
    width, room = values.shape[1], kept.shape[1]
    lanes = _lanes(width)
    largest = np.empty(lanes, bits.dtype)
    candidates = np.empty(width, bits.dtype)
    columns = np.empty(width, np.int32)
    infinity = np.full(1, np.inf, values.dtype).view(bits.dtype)[0]
    pruned = lanes >= 2 * k
    for row in range(start, stop):
        out = first + row
        for entry in range(room):
            kept[out, entry] = 0
            indices[out, entry] = 0
        counts[out] = 0
        top = _maxima(bits[row], largest, infinity)
        if top < 0:
            kept[out, 0] = np.nan
            counts[out] = 1
            continue
        # At least k values are not below the k-th largest of the lanes' largest.
        low = max(1, _kth(largest, lanes, k, 0, top)) if pruned else 1
        n = _candidates(bits[row], largest, low, candidates, columns, pruned)
        threshold = _kth(candidates, n, k, low, top) if n > k else low
        count = 0
        for candidate in range(n):
            if candidates[candidate] >= threshold:
                if count < room:
                    kept[out, count] = values[row, columns[candidate]]
                    indices[out, count] = columns[candidate]
                count += 1
        counts[out] = count


@compiled(sums=True)
def weighted_rows(
    start: int, stop: int, weights: Floats, indices: Indices, matrix: Floats, out: Floats
) -> None:
    """`out[r] = Σ weights[r, e] matrix[indices[r, e]]`, four at a time."""
    entries, width = weights.shape[1], matrix.shape[1]
    for row in range(start, stop):
        for i in range(width):
            out[row, i] = 0
        entry = 0
        while entry + 4 <= entries:
            a, b = weights[row, entry], weights[row, entry + 1]
            c, d = weights[row, entry + 2], weights[row, entry + 3]
            at, bt = indices[row, entry], indices[row, entry + 1]
            ct, dt = indices[row, entry + 2], indices[row, entry + 3]
            for i in range(width):
                out[row, i] += (
                    a * matrix[at, i] + b * matrix[bt, i] + c * matrix[ct, i] + d * matrix[dt, i]
                )
            entry += 4
        while entry < entries:
            a, at = weights[row, entry], indices[row, entry]
            for i in range(width):
                out[row, i] += a * matrix[at, i]
            entry += 1


@compiled(sums=True)
def sampled_products(
    start: int,
    stop: int,
    left: Floats,
    indices: Indices,
    values: Floats,
    matrix: Floats,
    out: Floats,
) -> None:
    """`out[r, e] += left[r] · matrix[indices[r, e]]`; 0 where `values[r, e]` is not positive."""
    width = matrix.shape[1]
    for row in range(start, stop):
        for entry in range(indices.shape[1]):
            if values[row, entry] <= 0:
                out[row, entry] = 0
                continue
            at = indices[row, entry]
            total = out[row, entry]
            for i in range(width):
                total += left[row, i] * matrix[at, i]
            out[row, entry] = total


@compiled()
def by_column(
    values: Floats, indices: Indices, offsets: Integers, rows: Indices, entries: Indices
) -> None:
    """Which entries are in which column, in order of rows: a counting sort.

    Args:
        values: `(rows, entries)`; what is 0 is nowhere.
        indices: Their columns, of the same shape.
        offsets: Written: where each column begins among those sorted, `(width + 1,)`.
        rows: Written: the row of each, `(rows * entries,)`.
        entries: Written: its place in the row.
    """
    width = len(offsets) - 1
    offsets[:] = 0
    for row in range(values.shape[0]):
        for entry in range(values.shape[1]):
            if values[row, entry] != 0:
                offsets[indices[row, entry] + 1] += 1
    for column in range(width):
        offsets[column + 1] += offsets[column]
    for row in range(values.shape[0]):
        for entry in range(values.shape[1]):
            if values[row, entry] != 0:
                place = offsets[indices[row, entry]]
                rows[place] = row
                entries[place] = entry
                offsets[indices[row, entry]] = place + 1
    for column in range(width, 0, -1):  # each now points at its end
        offsets[column] = offsets[column - 1]
    offsets[0] = 0


@compiled(sums=True)
def column_sums(
    start: int,
    stop: int,
    offsets: Integers,
    rows: Indices,
    entries: Indices,
    weights: Floats,
    matrix: Floats,
    out: Floats,
) -> None:
    """`out[j] = Σ weights[r, e] matrix[r]` over the entries `(r, e)` of column `j`."""
    width = matrix.shape[1]
    for column in range(start, stop):
        for i in range(width):
            out[column, i] = 0
        for place in range(offsets[column], offsets[column + 1]):
            row = rows[place]
            weight = weights[row, entries[place]]
            for i in range(width):
                out[column, i] += weight * matrix[row, i]


@compiled(sums=True)
def two_column_sums(
    start: int,
    stop: int,
    offsets: Integers,
    rows: Indices,
    entries: Indices,
    weights: Floats,
    matrix: Floats,
    others: Floats,
    other: Floats,
    out: Floats,
) -> None:
    """As `column_sums`, and `Σ others[r, e] other[r]` added, so that `out` is written once."""
    width = matrix.shape[1]
    for column in range(start, stop):
        for i in range(width):
            out[column, i] = 0
        for place in range(offsets[column], offsets[column + 1]):
            row = rows[place]
            a, b = weights[row, entries[place]], others[row, entries[place]]
            for i in range(width):
                out[column, i] += a * matrix[row, i] + b * other[row, i]


@compiled()
def column_totals(
    start: int,
    stop: int,
    offsets: Integers,
    rows: Indices,
    entries: Indices,
    weights: Floats,
    out: Floats,
) -> None:
    """`out[j] = Σ weights[r, e]` over the entries `(r, e)` of column `j`."""
    for column in range(start, stop):
        total = 0.0
        for place in range(offsets[column], offsets[column + 1]):
            total += weights[rows[place], entries[place]]
        out[column] = total


@compiled(sums=True)
def tangents(start: int, stop: int, gradient: Floats, rows: Floats) -> None:
    """Take out of each row of the gradient what is along the row of norm 1, in place."""
    width = rows.shape[1]
    for row in range(start, stop):
        along = rows.dtype.type(0)
        for i in range(width):
            along += gradient[row, i] * rows[row, i]
        for i in range(width):
            gradient[row, i] -= along * rows[row, i]


@compiled(sums=True)
def unit_rows(start: int, stop: int, rows: Floats) -> None:
    """Scale each row to norm 1, in place; a row of zeros stays one."""
    width = rows.shape[1]
    for row in range(start, stop):
        square = rows.dtype.type(0)
        for i in range(width):
            square += rows[row, i] * rows[row, i]
        if square > 0:
            norm = np.sqrt(square)
            for i in range(width):
                rows[row, i] /= norm


@compiled(sums=True)
def variances(
    start: int,
    stop: int,
    offsets: Integers,
    weights: Floats,
    rows: int,
    mean: Floats,
    variance: Floats,
) -> None:
    """Mean and unbiased variance of each column, of which most entries are zero.

    Args:
        start: First column.
        stop: Column after the last.
        offsets: Where each column begins, `(width + 1,)`.
        weights: Its entries that are not zero, `(entries,)`.
        rows: How many entries a column has, zeros included.
        mean: Written, `(width,)`.
        variance: Written, `(width,)`.
    """
    for column in range(start, stop):
        total = 0.0
        for place in range(offsets[column], offsets[column + 1]):
            total += weights[place]
        average = total / rows
        square = (rows - (offsets[column + 1] - offsets[column])) * average * average
        for place in range(offsets[column], offsets[column + 1]):
            square += (weights[place] - average) ** 2
        mean[column] = average
        variance[column] = square / (rows - 1)


@compiled(sums=True)
def _gram_row(
    row: int,
    values: Floats,
    indices: Indices,
    offsets: Integers,
    rows: Indices,
    weights: Floats,
    along: Floats,
    gram: Floats,
) -> None:
    """Row `row` of the Gram matrix of the centered rows, written over `gram`, `(rows,)`."""
    gram[:] = 0
    for entry in range(values.shape[1]):
        value = np.float64(values[row, entry])
        if value != 0:
            column = indices[row, entry]
            for place in range(offsets[column], offsets[column + 1]):
                gram[rows[place]] += value * weights[place]
    for other in range(len(gram)):
        gram[other] -= along[row] + along[other]


@compiled(sums=True)
def gram_squares(
    start: int,
    stop: int,
    first: int,
    values: Floats,
    indices: Indices,
    offsets: Integers,
    rows: Indices,
    weights: Floats,
    along: Floats,
    out: Floats,
) -> None:
    """The sum of squares of each row of the Gram matrix of centered sparse rows.

    Only rows that share a column have a product that is not zero, and the mean `m` is taken out
    of it afterwards: `(a - m)(b - m) = ab - (am - mm/2) - (bm - mm/2)`.

    Args:
        start: First row of the output.
        stop: Row after the last.
        first: Which of the rows is the first of the output.
        values: `(rows, room)`.
        indices: Their columns, of the same shape.
        offsets: Where each column begins, `(width + 1,)`.
        rows: The row of each entry, by columns.
        weights: The value of each.
        along: `z·m - m·m/2` of each row `z`, `(rows,)`.
        out: Written, `(output rows,)`.
    """
    gram = np.empty(len(along), np.float64)
    for row in range(start, stop):
        _gram_row(first + row, values, indices, offsets, rows, weights, along, gram)
        total = 0.0
        for other in range(len(gram)):
            total += gram[other] * gram[other]
        out[row] = total


@compiled(sums=True)
def gram_products(
    start: int,
    stop: int,
    first: int,
    values: Floats,
    indices: Indices,
    offsets: Integers,
    rows: Indices,
    weights: Floats,
    along: Floats,
    mean: Floats,
    variance: Floats,
    scale: float,
    out: Floats,
) -> None:
    """The gradient of the sum of squared covariances at the values that are not zero.

    `scale (Σ G z / (rows - 1) - variance (z - mean))` with `G` the Gram matrix, whose rows sum to
    zero, so that `z` need not be centered. Takes what `gram_squares` takes, and the mean and the
    variance of each column, `(width,)`. Writes `out`, `(output rows, room)`, 0 where a value is.
    """
    gram = np.empty(len(along), np.float64)
    for row in range(start, stop):
        _gram_row(first + row, values, indices, offsets, rows, weights, along, gram)
        for entry in range(values.shape[1]):
            value = np.float64(values[first + row, entry])
            if value == 0:
                out[row, entry] = 0
                continue
            column = indices[first + row, entry]
            total = 0.0
            for place in range(offsets[column], offsets[column + 1]):
                total += gram[rows[place]] * weights[place]
            centered = value - mean[column]
            out[row, entry] = scale * (total / (len(gram) - 1) - variance[column] * centered)


@compiled(sums=True)
def center(start: int, stop: int, rows: Floats, centered: Floats, variance: Floats) -> None:
    """Take the mean out of columns, and note their unbiased variances.

    Args:
        start: First column.
        stop: Column after the last.
        rows: `(rows, width)`.
        centered: Written, of the same shape.
        variance: Written, `(width,)`.
    """
    count = rows.shape[0]
    sums, squares = np.zeros(SLICE), np.zeros(SLICE)
    for first in range(start, stop, SLICE):
        width = min(stop, first + SLICE) - first
        sums[:], squares[:] = 0, 0
        # Of a slice that has a name the compiler knows that its elements are neighbors.
        for row in range(count):
            source = rows[row, first : first + width]
            for column in range(width):
                sums[column] += source[column]
        sums /= count
        for row in range(count):
            source = rows[row, first : first + width]
            target = centered[row, first : first + width]
            for column in range(width):
                value = source[column] - sums[column]
                target[column] = value
                squares[column] += value * value
        for column in range(width):
            variance[first + column] = squares[column] / (count - 1)


@compiled(sums=True)
def subtract_variance(
    start: int, stop: int, product: Floats, centered: Floats, variance: Floats, scale: float
) -> None:
    """`product = scale (product - variance * centered)`, in place, all but the variance by rows."""
    factor = product.dtype.type(scale)
    for row in range(start, stop):
        for column in range(product.shape[1]):
            less = variance[column] * centered[row, column]
            product[row, column] = factor * (product[row, column] - less)
