"""Triton kernels."""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from palinka.autoencoders.kernels.dispatch import autocast_dtype
from palinka.autoencoders.kernels.sparse import Primitives, listed
from palinka.autoencoders.kernels.topk import SparseLatents


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function for the GPU when it is first called with each type of arguments."""
    return triton.jit(function)


@kernel
def keys_of(values):  # type: ignore[no-untyped-def]
    """Keys, int32, of values in float32."""
    positive = tl.where(values > 0, values, 0.0)
    return tl.where(values != values, 0x7FC00000, positive.to(tl.int32, bitcast=True))


@kernel
def keep_largest(keys, k):  # type: ignore[no-untyped-def]
    """Which of a vector of keys, all that tie included, are the `k` largest and are not 0.

    By bisection. Where there is a NaN, only the first is kept: no more is needed for it to be
    seen downstream.

    Returns:
        Which are kept, and how many of them come up to and with each.
    """
    top = tl.max(keys, axis=0)
    low, high = tl.where(top == 0x7FC00000, top, 1), top
    while low < high:
        middle = low + (high - low + 1) // 2
        count = tl.sum((keys >= middle).to(tl.int32), axis=0)
        # With exactly k above it, no more need be known of where the k-th is.
        high = tl.where(count >= k, tl.where(count == k, middle, high), middle - 1)
        low = tl.where(count >= k, middle, low)
    kept = keys >= low
    place = tl.cumsum(kept.to(tl.int32), axis=0)
    return kept & (place <= tl.where(top == 0x7FC00000, 1, place)), place


# Neighboring latents of which the largest is noted.
GROUP = 16
# Rows and latents of a tile, and its inputs at a time by the bytes of one: what fits three times
# into the shared memory of every GPU since the A100.
TILE_ROWS, TILE_LATENTS, TILE_INPUTS = 128, 128, {2: 64, 4: 32}
# Tiles of rows that are made one after the other from the same latents, for the cache.
BAND = 8


@kernel
def _encode(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    out,
    largest,
    rows,
    latents,
    inputs,
    groups,
    x_row,
    weight_row,
    with_bias: tl.constexpr,
    precision: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_latents: tl.constexpr,
    tile_inputs: tl.constexpr,
    group: tl.constexpr,
    band: tl.constexpr,
):
    tiles_down = tl.cdiv(rows, tile_rows)
    tiles_across = tl.cdiv(latents, tile_latents)
    program = tl.program_id(0)
    first = program // (band * tiles_across) * band
    height = tl.minimum(tiles_down - first, band)
    place = program % (band * tiles_across)
    down, across = first + place % height, place // height
    row = (down * tile_rows + tl.arange(0, tile_rows)).to(tl.int64)
    latent = (across * tile_latents + tl.arange(0, tile_latents)).to(tl.int64)
    step = tl.arange(0, tile_inputs)
    total = tl.zeros((tile_rows, tile_latents), dtype=tl.float32)
    for start in range(0, inputs, tile_inputs):
        column = start + step
        left = tl.load(
            x + row[:, None] * x_row + column[None, :],
            mask=(row[:, None] < rows) & (column[None, :] < inputs),
            other=0.0,
        )
        right = tl.load(
            weight + latent[None, :] * weight_row + column[:, None],
            mask=(latent[None, :] < latents) & (column[:, None] < inputs),
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision=precision)
    if with_bias:
        total += tl.load(bias + latent, mask=latent < latents, other=0.0).to(tl.float32)[None, :]
    # Rounded before it is compared, as what the plain form compares has been.
    rounded = total.to(out.dtype.element_ty)
    tl.store(
        out + row[:, None] * latents + latent[None, :],
        rounded,
        mask=(row[:, None] < rows) & (latent[None, :] < latents),
    )
    keys = tl.where(latent[None, :] < latents, keys_of(rounded.to(tl.float32)), 0)
    tops = tl.max(tl.reshape(keys, (tile_rows, tile_latents // group, group)), axis=2)
    place_of_group = across * (tile_latents // group) + tl.arange(0, tile_latents // group)
    tl.store(
        largest + row[:, None] * groups + place_of_group[None, :],
        tops,
        mask=(row[:, None] < rows) & (place_of_group[None, :] < groups),
    )


def encode(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """`W x + b`, and the largest of every `GROUP` neighbors of each row.

    Sums are in float32; float32 inputs are multiplied as
    `torch.set_float32_matmul_precision` says.

    Args:
        x: `(rows, inputs)`, in float32, bfloat16 or float16.
        weight: `(latents, inputs)`, in the same dtype.
        bias: `(latents,)`, in the same dtype.

    Returns:
        `(rows, latents)`, in the same dtype, and the keys of the largest, int32
        `(rows, groups)`.
    """
    x, weight = x.contiguous(), weight.contiguous()
    latents = len(weight)
    groups = triton.cdiv(latents, GROUP)
    out = x.new_empty(len(x), latents)
    largest = torch.empty(len(x), groups, dtype=torch.int32, device=x.device)
    exact = torch.get_float32_matmul_precision() == "highest"
    if len(x):
        _encode[(triton.cdiv(len(x), TILE_ROWS) * triton.cdiv(latents, TILE_LATENTS),)](
            x,
            weight,
            weight if bias is None else bias.contiguous(),
            out,
            largest,
            len(x),
            latents,
            x.shape[1],
            groups,
            x.stride(0),
            weight.stride(0),
            with_bias=bias is not None,
            precision="ieee" if exact else "tf32",
            tile_rows=TILE_ROWS,
            tile_latents=TILE_LATENTS,
            tile_inputs=TILE_INPUTS[x.element_size()],
            group=GROUP,
            band=BAND,
            num_warps=8,
            num_stages=3,
        )
    return out, largest


# Latents in memory before the largest have been chosen.
CHUNK = 1 << 27
# Groups and values that a row may have beyond k: bfloat16 has hardly 128 numbers between two
# powers of 2, so that ties are common.
SLACK = 32
NAN = 0x7FC00000


@kernel
def _choose_groups(largest, chosen, counts, groups, room, k, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, block)
    keys = tl.load(largest + row * groups + group, mask=group < groups, other=0)
    kept, place = keep_largest(keys, k)
    tl.store(chosen + row * room + place - 1, group, mask=kept & (place <= room))
    tl.store(counts + row, tl.sum(kept.to(tl.int32), axis=0))


@kernel
def _choose_values(  # type: ignore[no-untyped-def]
    latents,
    chosen,
    group_counts,
    values,
    indices,
    counts,
    width,
    group_room,
    room,
    k,
    group: tl.constexpr,
    group_block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    entry = tl.arange(0, group_block)
    there = entry < tl.minimum(tl.load(group_counts + row), group_room)
    first = tl.load(chosen + row * group_room + entry, mask=there, other=0) * group
    column = tl.reshape(first[:, None] + tl.arange(0, group)[None, :], (group_block * group,))
    wanted = tl.reshape(
        there[:, None] & (tl.arange(0, group)[None, :] >= 0), (group_block * group,)
    )
    wanted = wanted & (column < width)
    value = tl.load(latents + row * width + column, mask=wanted, other=0.0).to(tl.float32)
    kept, place = keep_largest(keys_of(value), k)
    written = kept & (place <= room)
    tl.store(values + row * room + place - 1, value.to(values.dtype.element_ty), mask=written)
    tl.store(indices + row * room + place - 1, column, mask=written)
    tl.store(counts + row, tl.sum(kept.to(tl.int32), axis=0))


def select_rows(x: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest positive of `W x + b` of each row, ties included, and their columns.

    Args:
        x: `(rows, inputs)`, in float32, bfloat16 or float16.
        weight: `(latents, inputs)`, in the same dtype.
        bias: `(latents,)`, in the same dtype.
        k: How many.

    Returns:
        Values in the same dtype and int32 indices, `(rows, room)`, by columns, where room is what
        the row with the most needs; zeros where a row has fewer. A row with a NaN keeps one NaN.
    """
    latents = len(weight)
    groups = triton.cdiv(latents, GROUP)
    group_room, room = min(k + SLACK, groups), min(k + SLACK, latents)
    values, indices = x.new_zeros(len(x), room), _integers(x, len(x), room)
    group_counts, counts = _integers(x, len(x)), _integers(x, len(x))
    rows = max(1, CHUNK // latents)
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        made, largest = encode(x[part], weight, bias)
        chosen = _integers(x, len(made), group_room)
        _choose_groups[(len(made),)](
            largest,
            chosen,
            group_counts[part],
            groups,
            group_room,
            k,
            block=triton.next_power_of_2(groups),
            num_warps=_warps(groups),
        )
        _choose_values[(len(made),)](
            made,
            chosen,
            group_counts[part],
            values[part],
            indices[part],
            counts[part],
            latents,
            group_room,
            room,
            k,
            group=GROUP,
            group_block=triton.next_power_of_2(group_room),
            num_warps=_warps(group_room * GROUP),
        )
    if len(x) == 0:
        return values, indices
    groups_needed, needed = torch.stack([group_counts.amax(), counts.amax()]).tolist()
    if groups_needed > group_room or needed > room:
        return _select_by_torch(x, weight, bias, k)
    # One column at least, for kernels that read one.
    needed = max(1, needed)
    return values[:, :needed].contiguous(), indices[:, :needed].contiguous()


def _select_by_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    """As `select_rows`, with room for any number of ties."""
    parts = []
    rows = max(1, CHUNK // len(weight))
    for start in range(0, len(x), rows):
        made, _ = encode(x[start : start + rows], weight, bias)
        whole = made.float()
        keys = whole.relu().view(torch.int32).masked_fill(whole.isnan(), NAN)
        top = torch.topk(keys, k, dim=1, sorted=False).values
        kept = keys >= top.amin(dim=1, keepdim=True).clamp_min(1)
        strange = top.amax(dim=1, keepdim=True) == NAN
        kept &= ~strange | (kept.cumsum(dim=1) == 1)
        room = max(1, int(kept.sum(dim=1).max()))
        # What is kept first, by columns, since the sort is stable.
        order = kept.int().sort(dim=1, descending=True, stable=True).indices[:, :room]
        there = kept.gather(1, order)
        parts.append((made.gather(1, order).where(there, 0.0), (order * there).int()))
    room = max(values.shape[1] for values, _ in parts)
    values, indices = (
        torch.cat([torch.nn.functional.pad(t, (0, room - t.shape[1])) for t in side])
        for side in zip(*parts, strict=True)
    )
    return values, indices


def _warps(numbers: int) -> int:
    """So many that a thread holds 16 numbers, within what a GPU can do."""
    warps: int = triton.next_power_of_2(numbers) // 512
    return min(16, max(4, warps))


def _integers(like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32, device=like.device)


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


# Entries that are read together, and numbers of each.
COLUMN_ENTRIES, COLUMN_WIDTH = 16, 128


@kernel
def _part(weights, matrix, place, there, column, room, width):  # type: ignore[no-untyped-def]
    weight = tl.load(weights + place, mask=there, other=0.0).to(tl.float32)
    rows = tl.load(
        matrix + (place // room)[:, None] * width + column[None, :],
        mask=there[:, None] & (column[None, :] < width),
        other=0.0,
    )
    return tl.sum(weight[:, None] * rows.to(tl.float32), axis=0)


@kernel
def _column_sums(  # type: ignore[no-untyped-def]
    offsets,
    order,
    weights,
    matrix,
    other_weights,
    other,
    out,
    room,
    width,
    with_other: tl.constexpr,
    entries: tl.constexpr,
    block: tl.constexpr,
):
    latent = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    begin, end = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    total = tl.zeros((block,), dtype=tl.float32)
    for start in range(begin, end, entries):
        entry = start + tl.arange(0, entries)
        there = entry < end
        place = tl.load(order + entry, mask=there, other=0)
        total += _part(weights, matrix, place, there, column, room, width)
        if with_other:
            total += _part(other_weights, other, place, there, column, room, width)
    tl.store(out + latent * width + column, total.to(out.dtype.element_ty), mask=column < width)


class Columns:
    """The entries of sparse latents, by latent.

    Args:
        values: `(rows, room)`.
        indices: `(rows, room)`.
        width: How many latents there are.
    """

    def __init__(self, values: Tensor, indices: Tensor, width: int) -> None:
        self.width, self.room = width, values.shape[1]
        # Zeros come last, as if of one latent more.
        latents = indices.where(values != 0, width).flatten()
        by_latent, self.order = torch.sort(latents, stable=True)
        ends = torch.arange(width + 1, dtype=by_latent.dtype, device=by_latent.device)
        self.offsets = torch.searchsorted(by_latent, ends)

    def sums(
        self,
        weights: Tensor,
        matrix: Tensor,
        other_weights: Tensor | None = None,
        other: Tensor | None = None,
    ) -> Tensor:
        """The rows of a matrix `(rows, inputs)` that have each latent, with weights, summed up.

        Given another matrix of the same shape with other weights, its sums are added. Sums are in
        float32, the result in the dtype of the weights.

        Returns:
            `(width, inputs)`.
        """
        weights, matrix = weights.contiguous(), matrix.contiguous()
        with_other = other_weights is not None and other is not None
        others = (other_weights, other) if with_other else (weights, matrix)
        out = weights.new_empty(self.width, matrix.shape[1])
        _column_sums[(self.width, triton.cdiv(matrix.shape[1], COLUMN_WIDTH))](
            self.offsets,
            self.order,
            weights,
            matrix,
            *(t.contiguous() for t in others if t is not None),
            out,
            self.room,
            matrix.shape[1],
            with_other=with_other,
            entries=COLUMN_ENTRIES,
            block=COLUMN_WIDTH,
        )
        return out

    def totals(self, weights: Tensor) -> Tensor:
        """The weights of each latent summed up, `(width,)`."""
        return self.sums(weights, weights.new_ones(len(weights), 1)).squeeze(1)


def _select(x: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    return select_rows(x, weight, None if bias is None else bias.to(x.dtype), k)


def _dtype(x: Tensor) -> torch.dtype:
    return autocast_dtype(x) or x.dtype


TRITON = Primitives(_dtype, _select, weighted_rows, sampled_products, Columns)


def triton_pass(
    x: Tensor,
    encoder: Tensor,
    encoder_bias: Tensor | None,
    decoder: Tensor | None,
    decoder_bias: Tensor | None,
    subtracts_bias: bool,
    k: int,
) -> tuple[Tensor, SparseLatents]:
    """As `autoencode`, by lists; all on one GPU, weights in float32, bfloat16 or float16."""
    # Kernels are launched on the current GPU, which need not be that of the tensors.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return listed(TRITON, x, encoder, encoder_bias, decoder, decoder_bias, subtracts_bias, k)
