"""The gradients of weights whose latents come as lists, in Triton.

Entries are sorted by latent, and a program adds up those of one latent, in order of rows: nothing
depends on which program is first, so that a run can be repeated exactly.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from palinka.kernels.triton_jit import kernel

# Entries that are read together, and numbers of each.
ENTRIES, WIDTH = 16, 128


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
        _column_sums[(self.width, triton.cdiv(matrix.shape[1], WIDTH))](
            self.offsets,
            self.order,
            weights,
            matrix,
            *(t.contiguous() for t in others if t is not None),
            out,
            self.room,
            matrix.shape[1],
            with_other=with_other,
            entries=ENTRIES,
            block=WIDTH,
        )
        return out

    def totals(self, weights: Tensor) -> Tensor:
        """The weights of each latent summed up, `(width,)`."""
        return self.sums(weights, weights.new_ones(len(weights), 1)).squeeze(1)
