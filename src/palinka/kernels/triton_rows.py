"""Products of rows with the few rows of a matrix that each has a list of, in Triton."""

import triton
import triton.language as tl
from torch import Tensor

from palinka.kernels.triton_jit import kernel

# Entries that are read together, and numbers of each.
ENTRIES, WIDTH = 16, 128


@kernel
def _weighted_rows(  # type: ignore[no-untyped-def]
    weights, indices, matrix, out, room, width, entries: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    total = tl.zeros((block,), dtype=tl.float32)
    for start in range(0, room, entries):
        entry = start + tl.arange(0, entries)
        weight = tl.load(weights + row * room + entry, mask=entry < room, other=0.0)
        weight = weight.to(tl.float32)
        at = tl.load(indices + row * room + entry, mask=entry < room, other=0).to(tl.int64)
        part = tl.load(
            matrix + at[:, None] * width + column[None, :],
            mask=(weight[:, None] != 0) & (column[None, :] < width),
            other=0.0,
        )
        total += tl.sum(weight[:, None] * part.to(tl.float32), axis=0)
    tl.store(out + row * width + column, total.to(out.dtype.element_ty), mask=column < width)


@kernel
def _sampled_products(  # type: ignore[no-untyped-def]
    left,
    indices,
    values,
    matrix,
    start,
    out,
    room,
    width,
    entries: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    entry = tl.program_id(1) * entries + tl.arange(0, entries)
    place = row * room + entry
    value = tl.load(values + place, mask=entry < room, other=0.0).to(tl.float32)
    # A NaN is neither, and its gradient is seen.
    there = (entry < room) & ((value > 0) | (value != value))
    at = tl.load(indices + place, mask=there, other=0).to(tl.int64)
    products = tl.zeros((entries, block), dtype=tl.float32)
    for first in range(0, width, block):
        column = first + tl.arange(0, block)
        own = tl.load(left + row * width + column, mask=column < width, other=0.0)
        other = tl.load(
            matrix + at[:, None] * width + column[None, :],
            mask=there[:, None] & (column[None, :] < width),
            other=0.0,
        )
        products += own.to(tl.float32)[None, :] * other.to(tl.float32)
    begun = tl.load(start + place, mask=there, other=0.0).to(tl.float32)
    total = tl.where(there, tl.sum(products, axis=1) + begun, 0.0)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=entry < room)


def weighted_rows(weights: Tensor, indices: Tensor, matrix: Tensor) -> Tensor:
    """Rows of a matrix `(columns, width)`, summed up with weights `(rows, room)` at indices.

    Sums are in float32, the result in the dtype of the weights.
    """
    weights, indices, matrix = (t.contiguous() for t in (weights, indices, matrix))
    (rows, room), width = weights.shape, matrix.shape[1]
    out = weights.new_empty(rows, width)
    if rows:
        _weighted_rows[(rows, triton.cdiv(width, WIDTH))](
            weights, indices, matrix, out, room, width, entries=ENTRIES, block=WIDTH
        )
    return out


def sampled_products(
    left: Tensor, indices: Tensor, values: Tensor, matrix: Tensor, start: Tensor
) -> Tensor:
    """`start` and the products of rows of `left` with rows of a matrix; 0 where values are not > 0.

    Sums are in float32, the result in the dtype of the values.

    Args:
        left: `(rows, width)`.
        indices: Rows of the matrix, `(rows, room)`.
        values: `(rows, room)`.
        matrix: `(columns, width)`.
        start: `(rows, room)`.

    Returns:
        `(rows, room)`.
    """
    given = (t.contiguous() for t in (left, indices, values, matrix, start))
    rows, room = values.shape
    out = values.new_empty(rows, room)
    if rows:
        _sampled_products[(rows, triton.cdiv(room, ENTRIES))](
            *given, out, room, left.shape[1], entries=ENTRIES, block=WIDTH
        )
    return out
