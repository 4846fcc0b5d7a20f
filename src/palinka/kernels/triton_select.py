"""The k largest latents of each row, of which no more is read than where they can be.

Each row's latents are written once, by the product that makes them. The k-th largest of the
groups' largest is not above the k-th largest of all, so that what is kept lies in groups that
reach it: k of them, unless some tie. Only these are read again.

Every value that ties with the k-th is kept, as the definition has it. There is room for `SLACK`
ties in each row; where a row has more, all are chosen by torch instead, from the same values made
again. To see that, the host waits for the GPU once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from palinka.kernels.triton_encode import GROUP, encode
from palinka.kernels.triton_jit import keep_largest, kernel, keys_of

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
