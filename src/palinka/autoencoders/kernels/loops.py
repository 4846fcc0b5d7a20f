"""Compiled loops over ranges of rows or columns, their threads, and dtypes of the kernels.

A loop runs from `start` to before `stop`.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from palinka.errors import Loop, compiled_with

Floats = NDArray[np.floating[Any]]
Bits = NDArray[np.signedinteger[Any]]
Indices = NDArray[np.int32]
Integers = NDArray[np.int64]

# Integers as wide as the floats of the loops, which are compared by their bits.
INTEGERS = {torch.float32: np.int32, torch.float64: np.int64}
# Rows differ in cost, and other programs use the same cores.
CHUNKS_PER_THREAD = 4
# A row is read in tiles of 16 by 16 values. The maximum of every 16th value of a tile is noted: as
# many lanes as a processor compares at a time, without comparing neighbors.
LANES = 16
TILE = LANES * 16


def supports_numba(*tensors: Tensor, contiguous: bool = False) -> bool:
    """Check for plain CPU tensors that are all float32 or all float64."""
    return all(
        tensor.device.type == "cpu"
        and tensor.dtype in INTEGERS
        and tensor.dtype == tensors[0].dtype
        and type(tensor) in (Tensor, nn.Parameter)
        and (tensor.is_contiguous() or not contiguous)
        for tensor in tensors
    )


def compiled(*, sums: bool = False, inline: bool = False) -> Callable[[Loop], Loop]:
    """Compile a loop when it is first called with each type of arguments.

    `sums` may be reordered, so that they can be vectorized; NaN and infinity propagate as without
    it. `inline` is for a callee, which, read from the cache, may be rounded otherwise than one
    compiled with its caller.
    """
    fastmath = {"reassoc", "contract", "nsz"} if sums else False
    inlined = "always" if inline else "never"
    return compiled_with(error_model="numpy", fastmath=fastmath, inline=inlined)


def in_parallel(loop: Callable[..., object], count: int, *arguments: object) -> None:
    """Call `loop(start, stop, *arguments)` on several threads, over ranges of `count`."""
    threads = torch.get_num_threads()
    if threads == 1 or count < threads:
        loop(0, count, *arguments)
        return
    chunks = min(count, threads * CHUNKS_PER_THREAD)
    ends = [chunk * count // chunks for chunk in range(chunks + 1)]
    # A pool does not survive a fork.
    pool = _pool(os.getpid(), threads)
    for done in [pool.submit(loop, start, stop, *arguments) for start, stop in pairwise(ends)]:
        done.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="palinka-kernels")


def raise_on_double_backward(function: str) -> None:
    """Raise in a backward pass with `create_graph`, whose graph would lack this function."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{function} is differentiable once: use the plain form")


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of means, variances and losses: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Dtype of matrix products with `x` under autocast; None outside, and for float64."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


class Columns(NamedTuple):
    """Entries of sparse rows that are not zero, by column and within a column by row."""

    offsets: Integers  # of the first entry of each column, and the number of all, (columns + 1,)
    rows: Indices  # of each entry, (rows * room,)
    entries: Indices  # the position of each entry in its row, (rows * room,)


class CenteredLatents(NamedTuple):
    """Sparse rows `z`, by row and by column, and their moments."""

    values: Floats  # (rows, room)
    indices: Indices  # the column of each value, (rows, room)
    columns: Columns
    weights: Floats  # the values by column, in float64
    mean: Floats  # of the rows, m, (width,)
    variance: Floats  # unbiased, (width,)
    along: Floats  # z·m - m·m/2, (rows,)


@compiled()
def _kth(bits: Bits, n: int, k: int, low: int, high: int) -> int:
    """Threshold that exactly `k` of the first `n` reach, or with ties the k-th largest.

    By bisection from `low`, which at least `k` reach, and `high`, the largest: faster than sorting.
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
    """Maximum of a row of bits, or -1 if it has a NaN: more than infinity, without the sign.

    The maximum of every lane of every tile, or 0 if all are negative, is written to `largest`.
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
    return (width + TILE - 1) // TILE * LANES


@compiled()
def _candidates(
    row: Bits, largest: Bits, low: int, candidates: Bits, columns: Indices, pruned: bool
) -> int:
    """Write the bits of a row that reach `low`, by column, and their columns; their number.

    If `pruned`, lanes are skipped whose maximum in `largest` is below the threshold.
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
                        place = n  # by column: those of later lanes may come first
                        while place > first and columns[place - 1] > i:
                            candidates[place] = candidates[place - 1]
                            columns[place] = columns[place - 1]
                            place -= 1
                        candidates[place], columns[place] = row[i], i
                        n += 1
    return n


@compiled()
def keep_positive(start: int, stop: int, values: Floats, bits: Bits, k: int) -> None:
    """Zero the values of each row that are not positive or below its k-th largest, in place.

    A row with a NaN keeps all positive values. `bits` is the memory of `values` as integers.
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
    start: int, stop: int, values: Floats, bits: Bits, k: int, first: int,
    kept: Floats, indices: Indices, counts: Integers,
) -> None:  # fmt: skip
    """Find the positive values of each row that are at least its k-th largest, by column.

    Row `r` goes to row `first + r` of `kept` and `indices`, `(output rows, room)`, padded with
    zeros, and its number to `counts`, `(output rows,)`; values beyond the room are dropped. A row
    with a NaN keeps one NaN. `bits` is as in `keep_positive`.
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
    """See `sparse.weighted_rows`; four entries at a time."""
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
    start: int, stop: int, left: Floats, indices: Indices, values: Floats, matrix: Floats,
    out: Floats,
) -> None:  # fmt: skip
    """See `sparse.sampled_products`; `out` begins as `start`."""
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
    """Write `Columns` of `values` that are not zero, at columns `indices`, by a counting sort."""
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
    for column in range(width, 0, -1):  # each offset is now the end of its column
        offsets[column] = offsets[column - 1]
    offsets[0] = 0


@compiled(sums=True)
def column_sums(
    start: int, stop: int, columns: Columns, weights: Floats, matrix: Floats,
    other_weights: Floats | None, other: Floats | None, out: Floats,
) -> None:  # fmt: skip
    """See `sparse.column_sums`; both sums are in one loop, so that `out` is written once."""
    offsets, rows, entries = columns
    width = matrix.shape[1]
    for column in range(start, stop):
        for i in range(width):
            out[column, i] = 0
        for place in range(offsets[column], offsets[column + 1]):
            row, entry = rows[place], entries[place]
            weight = weights[row, entry]
            if other is None or other_weights is None:
                for i in range(width):
                    out[column, i] += weight * matrix[row, i]
            else:
                other_weight = other_weights[row, entry]
                for i in range(width):
                    out[column, i] += weight * matrix[row, i] + other_weight * other[row, i]


@compiled(sums=True)
def tangents(start: int, stop: int, gradient: Floats, rows: Floats) -> None:
    """Subtract from each row of a gradient its projection on the row of norm 1, in place."""
    width = rows.shape[1]
    for row in range(start, stop):
        along = rows.dtype.type(0)
        for i in range(width):
            along += gradient[row, i] * rows[row, i]
        for i in range(width):
            gradient[row, i] -= along * rows[row, i]


@compiled(sums=True, inline=True)
def _gram_row(row: int, latents: CenteredLatents, gram: Floats) -> None:
    """Write row `row` of the Gram matrix of the centered rows, `(rows,)`.

    Only rows that share a column have a product that is not zero, and the mean `m` is subtracted
    afterwards: `(a - m)(b - m) = ab - (am - mm/2) - (bm - mm/2)`.
    """
    offsets, rows, _ = latents.columns
    gram[:] = 0
    for entry in range(latents.values.shape[1]):
        value = np.float64(latents.values[row, entry])
        if value != 0:
            column = latents.indices[row, entry]
            for place in range(offsets[column], offsets[column + 1]):
                gram[rows[place]] += value * latents.weights[place]
    for other in range(len(gram)):
        gram[other] -= latents.along[row] + latents.along[other]


@compiled(sums=True)
def gram_squares(start: int, stop: int, first: int, latents: CenteredLatents, out: Floats) -> None:
    """Sum of squares of each row of the Gram matrix, `(output rows,)`, from row `first`."""
    gram = np.empty(len(latents.along), np.float64)
    for row in range(start, stop):
        _gram_row(first + row, latents, gram)
        total = 0.0
        for other in range(len(gram)):
            total += gram[other] * gram[other]
        out[row] = total


@compiled(sums=True)
def gram_products(
    start: int, stop: int, first: int, latents: CenteredLatents, scale: float, out: Floats
) -> None:
    """Gradient of the sum of squared covariances at the values that are not zero.

    `scale (Σ G z / (rows - 1) - variance (z - mean))` with `G` the Gram matrix, whose rows sum to
    zero, so that `z` need not be centered; `(output rows, room)`, from row `first`.
    """
    offsets, rows, _ = latents.columns
    gram = np.empty(len(latents.along), np.float64)
    for row in range(start, stop):
        _gram_row(first + row, latents, gram)
        for entry in range(latents.values.shape[1]):
            value = np.float64(latents.values[first + row, entry])
            if value == 0:
                out[row, entry] = 0
                continue
            column = latents.indices[first + row, entry]
            total = 0.0
            for place in range(offsets[column], offsets[column + 1]):
                total += gram[rows[place]] * latents.weights[place]
            centered = value - latents.mean[column]
            out[row, entry] = scale * (
                total / (len(gram) - 1) - latents.variance[column] * centered
            )
