"""Encode and decode with the kept latents only, by Triton kernels on a GPU.

Values are compared by keys: the bits of a positive float32 as an integer, 0 for any other number,
and 0x7FC00000 for NaN.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from palinka.autoencoders.kernels.sparse import Backend, SparseLatents, Weights, sparse_autograd

# Neighboring latents of which the maximum is noted.
GROUP = 16
# Rows and latents of a tile, and its inputs at a time by bytes per value: three such tiles fit
# into the shared memory of every GPU since the A100.
TILE_ROWS, TILE_LATENTS, TILE_INPUTS = 128, 128, {2: 64, 4: 32}
# Tiles of rows computed one after the other from the same latents, for the cache.
BAND = 8
# Latents in memory before the largest have been chosen.
CHUNK_ELEMENTS = 1 << 27
# Groups and values of a row beyond k for which there is room at first: bfloat16 has 128 numbers
# between two powers of 2, so that ties are common.
SLACK = 32
# Entries read together, and numbers of each.
ENTRIES, WIDTH = 16, 128

kernel: Callable[[Callable[..., Any]], Any] = triton.jit


@kernel
def _keys(values):  # type: ignore[no-untyped-def]
    positive = tl.where(values > 0, values, 0.0)
    return tl.where(values != values, 0x7FC00000, positive.to(tl.int32, bitcast=True))


@kernel
def _keep_largest(keys, k):  # type: ignore[no-untyped-def]
    """Mask of the `k` largest keys that are not 0, ties included, and its cumulative sum.

    By bisection. Of several NaN only the first is kept, which is enough to propagate.
    """
    top = tl.max(keys, axis=0)
    low, high = tl.where(top == 0x7FC00000, top, 1), top
    while low < high:
        middle = low + (high - low + 1) // 2
        count = tl.sum((keys >= middle).to(tl.int32), axis=0)
        # A threshold that exactly k reach need not be the k-th largest.
        high = tl.where(count >= k, tl.where(count == k, middle, high), middle - 1)
        low = tl.where(count >= k, middle, low)
    kept = keys >= low
    place = tl.cumsum(kept.to(tl.int32), axis=0)
    return kept & (place <= tl.where(top == 0x7FC00000, 1, place)), place


@kernel
def _encode(  # type: ignore[no-untyped-def]
    x, weight, bias, out, largest, rows, latents, inputs, groups,
    with_bias: tl.constexpr, precision: tl.constexpr, tile_rows: tl.constexpr,
    tile_latents: tl.constexpr, tile_inputs: tl.constexpr, group: tl.constexpr, band: tl.constexpr,
):  # fmt: skip
    tiles_across = tl.cdiv(latents, tile_latents)
    program = tl.program_id(0)
    first = program // (band * tiles_across) * band
    height = tl.minimum(tl.cdiv(rows, tile_rows) - first, band)
    place = program % (band * tiles_across)
    down, across = first + place % height, place // height
    row = (down * tile_rows + tl.arange(0, tile_rows)).to(tl.int64)[:, None]
    latent = (across * tile_latents + tl.arange(0, tile_latents)).to(tl.int64)[None, :]
    step = tl.arange(0, tile_inputs)
    total = tl.zeros((tile_rows, tile_latents), dtype=tl.float32)
    for start in range(0, inputs, tile_inputs):
        across_x, down_weight = start + step[None, :], start + step[:, None]
        left_mask = (row < rows) & (across_x < inputs)
        left = tl.load(x + row * inputs + across_x, mask=left_mask, other=0.0)
        right_mask = (latent < latents) & (down_weight < inputs)
        right = tl.load(weight + latent * inputs + down_weight, mask=right_mask, other=0.0)
        total = tl.dot(left, right, total, input_precision=precision)
    if with_bias:
        total += tl.load(bias + latent, mask=latent < latents, other=0.0).to(tl.float32)
    # Rounded before it is compared, as in the plain form.
    rounded = total.to(out.dtype.element_ty)
    mask = (row < rows) & (latent < latents)
    tl.store(out + row * latents + latent, rounded, mask=mask)
    keys = tl.where(latent < latents, _keys(rounded.to(tl.float32)), 0)
    tops = tl.max(tl.reshape(keys, (tile_rows, tile_latents // group, group)), axis=2)
    column = (across * (tile_latents // group) + tl.arange(0, tile_latents // group))[None, :]
    mask = (row < rows) & (column < groups)
    tl.store(largest + row * groups + column, tops, mask=mask)


def encode(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """`W x + b`, and the keys `(rows, groups)` of the largest of every `GROUP` neighbors.

    In one dtype; sums are in float32, multiplied by `torch.set_float32_matmul_precision`.
    """
    x, weight = x.contiguous(), weight.contiguous()
    (rows, inputs), latents = x.shape, len(weight)
    out = x.new_empty(rows, latents)
    largest = torch.empty(rows, triton.cdiv(latents, GROUP), dtype=torch.int32, device=x.device)
    exact = torch.get_float32_matmul_precision() == "highest"
    if rows:
        _encode[(triton.cdiv(rows, TILE_ROWS) * triton.cdiv(latents, TILE_LATENTS),)](
            x, weight, weight if bias is None else bias.contiguous(), out, largest,
            rows, latents, inputs, largest.shape[1],
            with_bias=bias is not None, precision="ieee" if exact else "tf32",
            tile_rows=TILE_ROWS, tile_latents=TILE_LATENTS,
            tile_inputs=TILE_INPUTS[x.element_size()],
            group=GROUP, band=BAND, num_warps=8, num_stages=3,
        )  # fmt: skip
    return out, largest


@kernel
def _choose_groups(largest, chosen, counts, groups, room, k, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, block)
    keys = tl.load(largest + row * groups + group, mask=group < groups, other=0)
    kept, place = _keep_largest(keys, k)
    tl.store(chosen + row * room + place - 1, group, mask=kept & (place <= room))
    tl.store(counts + row, tl.sum(kept.to(tl.int32), axis=0))


@kernel
def _choose_values(  # type: ignore[no-untyped-def]
    latents, chosen, group_counts, values, indices, counts, width, group_room, room, k,
    group: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    entry = tl.arange(0, block)
    valid = entry < tl.minimum(tl.load(group_counts + row), group_room)
    first = tl.load(chosen + row * group_room + entry, mask=valid, other=0) * group
    within = tl.arange(0, group)[None, :]
    column = tl.reshape(first[:, None] + within, (block * group,))
    mask = tl.reshape(valid[:, None] & (within >= 0), (block * group,)) & (column < width)
    value = tl.load(latents + row * width + column, mask=mask, other=0.0).to(tl.float32)
    kept, place = _keep_largest(_keys(value), k)
    mask = kept & (place <= room)
    tl.store(values + row * room + place - 1, value.to(values.dtype.element_ty), mask=mask)
    tl.store(indices + row * room + place - 1, column, mask=mask)
    tl.store(counts + row, tl.sum(kept.to(tl.int32), axis=0))


def select_rows(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, most: int = 0
) -> tuple[Tensor, Tensor]:
    """See `sparse.select_rows`; all in one of float32, bfloat16 or float16.

    Entries are by column, with the room that the row with the most needs: at first `most` groups
    and values, if more than `k + SLACK`. A row with a NaN keeps one NaN.
    """
    latents, bias = len(weight), None if bias is None else bias.to(x.dtype)
    groups = triton.cdiv(latents, GROUP)
    most = max(most, k + SLACK)
    group_room, room = min(most, groups), min(most, latents)
    values, indices = x.new_zeros(len(x), room), _integers(x, len(x), room)
    group_counts, counts = _integers(x, len(x)), _integers(x, len(x))
    rows = max(1, CHUNK_ELEMENTS // latents)
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        made, largest = encode(x[part], weight, bias)
        grid, chosen = (len(made),), _integers(x, len(made), group_room)
        sizes = {"block": triton.next_power_of_2(groups), "num_warps": _warps(groups)}
        _choose_groups[grid](largest, chosen, group_counts[part], groups, group_room, k, **sizes)
        outputs = values[part], indices[part], counts[part]
        numbers = latents, group_room, room, k
        block, warps = triton.next_power_of_2(group_room), _warps(group_room * GROUP)
        sizes = {"group": GROUP, "block": block, "num_warps": warps}
        _choose_values[grid](made, chosen, group_counts[part], *outputs, *numbers, **sizes)
    if len(x) == 0:
        return values, indices
    groups_needed, needed = torch.stack([group_counts.amax(), counts.amax()]).tolist()
    if groups_needed > group_room or needed > room:
        return select_rows(x, weight, bias, k, max(groups_needed, needed))
    # One column at least, for kernels that read one.
    needed = max(1, needed)
    return values[:, :needed].contiguous(), indices[:, :needed].contiguous()


def _warps(numbers: int) -> int:
    """Warps whose threads hold 16 numbers each, within the limits of a GPU."""
    warps: int = triton.next_power_of_2(numbers) // 512
    return min(16, max(4, warps))


def _integers(like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32, device=like.device)


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
        weight = weight.to(tl.float32)[:, None]
        at = tl.load(indices + row * room + entry, mask=entry < room, other=0).to(tl.int64)
        mask = (weight != 0) & (column[None, :] < width)
        part = tl.load(matrix + at[:, None] * width + column[None, :], mask=mask, other=0.0)
        total += tl.sum(weight * part.to(tl.float32), axis=0)
    tl.store(out + row * width + column, total.to(out.dtype.element_ty), mask=column < width)


@kernel
def _sampled_products(  # type: ignore[no-untyped-def]
    left, indices, values, matrix, start, out, room, width,
    entries: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    entry = tl.program_id(1) * entries + tl.arange(0, entries)
    place = row * room + entry
    value = tl.load(values + place, mask=entry < room, other=0.0).to(tl.float32)
    # The gradient of a NaN propagates too.
    valid = (entry < room) & ((value > 0) | (value != value))
    at = tl.load(indices + place, mask=valid, other=0).to(tl.int64)[:, None]
    products = tl.zeros((entries, block), dtype=tl.float32)
    for first in range(0, width, block):
        column = (first + tl.arange(0, block))[None, :]
        own = tl.load(left + row * width + column, mask=column < width, other=0.0)
        mask = valid[:, None] & (column < width)
        other = tl.load(matrix + at * width + column, mask=mask, other=0.0)
        products += own.to(tl.float32) * other.to(tl.float32)
    begun = tl.load(start + place, mask=valid, other=0.0).to(tl.float32)
    total = tl.where(valid, tl.sum(products, axis=1) + begun, 0.0)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=entry < room)


def weighted_rows(weights: Tensor, indices: Tensor, matrix: Tensor) -> Tensor:
    """See `sparse.weighted_rows`; here and below sums are in float32."""
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
    """See `sparse.sampled_products`."""
    given = (t.contiguous() for t in (left, indices, values, matrix, start))
    rows, room = values.shape
    out = torch.empty_like(values, memory_format=torch.contiguous_format)
    if rows:
        _sampled_products[(rows, triton.cdiv(room, ENTRIES))](
            *given, out, room, left.shape[1], entries=ENTRIES, block=WIDTH
        )
    return out


@kernel
def _part(weights, matrix, place, valid, column, room, width):  # type: ignore[no-untyped-def]
    weight = tl.load(weights + place, mask=valid, other=0.0).to(tl.float32)
    mask = valid[:, None] & (column[None, :] < width)
    rows = tl.load(
        matrix + (place // room)[:, None] * width + column[None, :], mask=mask, other=0.0
    )
    return tl.sum(weight[:, None] * rows.to(tl.float32), axis=0)


@kernel
def _column_sums(  # type: ignore[no-untyped-def]
    offsets, order, weights, matrix, other_weights, other, out, room, width,
    with_other: tl.constexpr, entries: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    latent = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    begin, end = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    total = tl.zeros((block,), dtype=tl.float32)
    for start in range(begin, end, entries):
        entry = start + tl.arange(0, entries)
        valid = entry < end
        place = tl.load(order + entry, mask=valid, other=0)
        total += _part(weights, matrix, place, valid, column, room, width)
        if with_other:
            total += _part(other_weights, other, place, valid, column, room, width)
    tl.store(out + latent * width + column, total.to(out.dtype.element_ty), mask=column < width)


def sort_by_column(values: Tensor, indices: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """See `sparse.sort_by_column`.

    The first entry of each latent and the end of the last, `(width + 1,)`, and the flat positions
    of the entries, zeros last.
    """
    latents = indices.where(values != 0, width).flatten()
    by_latent, order = torch.sort(latents, stable=True)
    ends = torch.arange(width + 1, dtype=by_latent.dtype, device=by_latent.device)
    return torch.searchsorted(by_latent, ends), order


def column_sums(
    columns: tuple[Tensor, Tensor], weights: Tensor, matrix: Tensor,
    other_weights: Tensor | None = None, other: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """See `sparse.column_sums`."""
    weights, matrix = weights.contiguous(), matrix.contiguous()
    others = (weights, matrix) if other_weights is None or other is None else (other_weights, other)
    latents, width = len(columns[0]) - 1, matrix.shape[1]
    out = weights.new_empty(latents, width)
    _column_sums[(latents, triton.cdiv(width, WIDTH))](
        *columns, weights, matrix, *(t.contiguous() for t in others), out, weights.shape[1], width,
        with_other=other is not None, entries=ENTRIES, block=WIDTH,
    )  # fmt: skip
    return out


TRITON = Backend(True, select_rows, weighted_rows, sampled_products, sort_by_column, column_sums)


def triton_autograd(x: Tensor, weights: Weights, k: int) -> tuple[Tensor, SparseLatents]:
    """`sparse_autograd` on one GPU, with weights in float32, bfloat16 or float16."""
    # Kernels are launched on the current GPU, which need not be that of the tensors.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return sparse_autograd(x, weights, k, TRITON)
