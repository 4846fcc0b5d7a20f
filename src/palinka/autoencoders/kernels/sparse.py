"""Sparse latents, and encode and decode by loops over the kept ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from palinka.autoencoders.kernels import loops

# Latents in memory before the largest have been chosen.
CHUNK_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class SparseLatents:
    """Sparse latents as values and indices, `(rows, room)`.

    Values, with a graph if there is one, are zero where a row has fewer; the int32 `indices` of
    their latents, of which there are `width`, are distinct except for zeros.
    """

    values: Tensor
    indices: Tensor
    width: int

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the values."""
        return self.values.dtype

    def dense(self) -> Tensor:
        """All latents, `(rows, width)`; the gradient passes to those that are not zero."""
        zeros = self.values.new_zeros(len(self), self.width)
        return zeros.scatter_add(1, self.indices.long(), self.values)

    def detach(self) -> "SparseLatents":
        """The same latents without a graph."""
        return SparseLatents(self.values.detach(), self.indices, self.width)

    def fired(self) -> Tensor:
        """Number of rows on which each latent is not zero, `(width,)`, int64."""
        active = self.values.detach() != 0
        counts = self.indices.new_zeros(self.width, dtype=torch.int64)
        # Sums of integers do not depend on their order, and need no synchronization on a GPU.
        return counts.scatter_add_(0, self.indices.flatten().long(), active.flatten().long())


Latents = Tensor | SparseLatents


class Weights(NamedTuple):
    """Matrices `(latents, inputs)` and `(latents, outputs)`, and biases, of an autoencoder.

    The decoder is None if it is the encoder; its bias may be subtracted from the input.
    """

    encoder: Tensor
    encoder_bias: Tensor | None = None
    decoder: Tensor | None = None
    decoder_bias: Tensor | None = None
    subtracts_bias: bool = False

    def shift(self, x: Tensor) -> Tensor:
        """Subtract the decoder bias from `x`, if the autoencoder does."""
        return x - self.decoder_bias if self.subtracts_bias and self.decoder_bias is not None else x


class Backend(NamedTuple):
    """Primitives of `sparse_autograd` on one kind of device, as the functions below."""

    reads_autocast: bool  # matrices are read in its dtype, not only multiplied in it
    select_rows: Callable[[Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor]]
    weighted_rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    sampled_products: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    sort_by_column: Callable[[Tensor, Tensor, int], Any]
    column_sums: Callable[..., Tensor]


def select_rows(x: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Select the `k` largest positive values of `W x + b` in each row, ties included.

    From `x`, `(rows, inputs)`, to values and int32 indices, `(rows, room)`, where room is `k`
    unless ties need more; zeros where a row has fewer. The weight is in float32 or float64.
    """
    dtype = loops.autocast_dtype(x) or weight.dtype
    kept, indices = weight.new_empty(len(x), k), torch.empty(len(x), k, dtype=torch.int32)
    counts = np.zeros(len(x), dtype=np.int64)
    factor = weight.to(dtype).T
    term = None if bias is None else bias.to(dtype)
    rows = max(1, CHUNK_ELEMENTS // len(weight))
    buffer = x.new_empty(min(rows, len(x)), len(weight), dtype=dtype)
    for start in range(0, len(x), rows):
        part = x[start : start + rows].to(dtype)
        chunk = buffer[: len(part)]
        if term is None:
            torch.mm(part, factor, out=chunk)
        else:
            torch.addmm(term, part, factor, out=chunk)
        values = chunk.to(weight.dtype).numpy()
        bits = values.view(loops.INTEGERS[weight.dtype])
        while True:
            outputs = kept.numpy(), indices.numpy(), counts
            loops.in_parallel(loops.select_positive, len(part), values, bits, k, start, *outputs)
            more = int(counts[start : start + len(part)].max()) - kept.shape[1]
            if more <= 0:
                break
            # Rows with ties have more; their number is known only now.
            kept, indices = functional.pad(kept, (0, more)), functional.pad(indices, (0, more))
            kept[start + len(part) :], indices[start + len(part) :] = 0.0, 0
    return kept, indices


def weighted_rows(weights: Tensor, indices: Tensor, matrix: Tensor) -> Tensor:
    """`Σ weights[r, e] matrix[indices[r, e]]` over `(rows, room)` entries, `(rows, width)`."""
    out = matrix.new_empty(len(weights), matrix.shape[1])
    arrays = _arrays(weights, indices, matrix, out)
    loops.in_parallel(loops.weighted_rows, len(weights), *arrays)
    return out


def sampled_products(
    left: Tensor, indices: Tensor, values: Tensor, matrix: Tensor, start: Tensor
) -> Tensor:
    """`start[r, e] + left[r] · matrix[indices[r, e]]` where `values[r, e] > 0`, else 0."""
    out = start.clone(memory_format=torch.contiguous_format)
    arrays = _arrays(left, indices, values, matrix, out)
    loops.in_parallel(loops.sampled_products, len(left), *arrays)
    return out


def sort_by_column(values: Tensor, indices: Tensor, width: int) -> loops.Columns:
    """Sort the entries `(rows, room)` of sparse latents by latent, of which there are `width`."""
    rows, entries = (np.empty(values.numel(), dtype=np.int32) for _ in range(2))
    columns = loops.Columns(np.empty(width + 1, dtype=np.int64), rows, entries)
    kept, latents = _arrays(values, indices)
    loops.by_column(kept, latents, *columns)
    return columns


def column_sums(
    columns: loops.Columns, weights: Tensor, matrix: Tensor,
    other_weights: Tensor | None = None, other: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`Σ weights[r, e] matrix[r] (+ other_weights[r, e] other[r])` over a latent's `(r, e)`.

    From weights, `(rows, room)`, and matrices, `(rows, inputs)`, to `(latents, inputs)`.
    """
    width = len(columns.offsets) - 1
    out = matrix.new_empty(width, matrix.shape[1])
    given = weights, matrix, other_weights, other, out
    arrays = [None if tensor is None else _arrays(tensor)[0] for tensor in given]
    loops.in_parallel(loops.column_sums, width, columns, *arrays)
    return out


def _arrays(*tensors: Tensor) -> tuple[NDArray[Any], ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


LOOPS = Backend(False, select_rows, weighted_rows, sampled_products, sort_by_column, column_sums)


def sparse_autograd(
    x: Tensor, weights: Weights, k: int, backend: Backend = LOOPS
) -> tuple[Tensor, SparseLatents]:
    """`autoencode` with the kept latents only; on the CPU in float32 or float64."""
    made, values, indices = _Sparse.apply(  # type: ignore[no-untyped-call]
        x.to(weights.encoder.dtype), *weights, k, backend
    )
    return made, SparseLatents(values, indices, len(weights.encoder))


class _Sparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        *given, k, backend = arguments
        weights = Weights(*given)
        dtype = (loops.autocast_dtype(x) if backend.reads_autocast else None) or x.dtype
        shifted, encoder = weights.shift(x).to(dtype), weights.encoder.to(dtype)
        decoder = None if weights.decoder is None else weights.decoder.to(dtype)
        values, indices = backend.select_rows(shifted, encoder, weights.encoder_bias, k)
        values = values.to(weights.encoder.dtype)
        made = backend.weighted_rows(values, indices, encoder if decoder is None else decoder)
        if weights.decoder_bias is not None:
            made += weights.decoder_bias
        ctx.save_for_backward(shifted, encoder, decoder, values, indices)
        ctx.backend, ctx.subtracts_bias = backend, weights.subtracts_bias
        ctx.mark_non_differentiable(indices)
        return made, values, indices

    @staticmethod
    def backward(
        ctx: Any, of_made: Tensor, of_values: Tensor, of_indices: Tensor
    ) -> tuple[Tensor | None, ...]:
        loops.raise_on_double_backward("autoencode")
        x, encoder, decoder, values, indices = ctx.saved_tensors
        needs_x, needs_encoder, needs_bias, needs_decoder, needs_shift = ctx.needs_input_grad[:5]
        backend: Backend = ctx.backend
        shift = of_made.sum(dim=0) if needs_shift else None
        of_made = of_made.to(x.dtype).contiguous()
        dictionary = encoder if decoder is None else decoder
        kept = backend.sampled_products(of_made, indices, values, dictionary, of_values)
        columns = backend.sort_by_column(values, indices, len(encoder))
        gradients: list[Tensor | None] = [None] * 8
        if needs_encoder:
            tied = (values, of_made) if decoder is None else ()
            gradients[1] = backend.column_sums(columns, kept, x, *tied)
        if needs_decoder:
            gradients[3] = backend.column_sums(columns, values, of_made)
        if needs_bias or (needs_shift and ctx.subtracts_bias):
            totals = backend.column_sums(columns, kept, kept.new_ones(len(kept), 1))[:, 0]
        if needs_bias:
            gradients[2] = totals
        if shift is not None:
            if ctx.subtracts_bias:
                shift -= totals @ encoder.to(kept.dtype)
            gradients[4] = shift
        if needs_x:
            gradients[0] = backend.weighted_rows(kept, indices, encoder)
        return tuple(gradients)
