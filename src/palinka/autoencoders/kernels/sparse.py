"""Sparse kernels."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palinka.autoencoders.kernels import loops
from palinka.autoencoders.kernels.dispatch import (
    autocast_dtype,
    in_parallel,
    raise_on_double_backward,
)
from palinka.autoencoders.kernels.topk import INTEGERS, SparseLatents


class ByColumn(Protocol):
    """The entries of sparse latents, by latent."""

    def sums(
        self,
        weights: Tensor,
        matrix: Tensor,
        other_weights: Tensor | None = None,
        other: Tensor | None = None,
    ) -> Tensor:
        """The rows of a matrix that have each latent, with weights, summed up."""

    def totals(self, weights: Tensor) -> Tensor:
        """The weights of each latent summed up."""


class Primitives(NamedTuple):
    """What a pass by lists is made of, on one kind of device."""

    dtype: Callable[[Tensor], torch.dtype]
    """In which the matrices are read, from the input."""
    select_rows: Callable[[Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor]]
    weighted_rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    sampled_products: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    columns: Callable[[Tensor, Tensor, int], ByColumn]


def listed(
    primitives: Primitives,
    x: Tensor,
    encoder: Tensor,
    encoder_bias: Tensor | None,
    decoder: Tensor | None,
    decoder_bias: Tensor | None,
    subtracts_bias: bool,
    k: int,
) -> tuple[Tensor, SparseLatents]:
    """As `autoencode`, by lists, of what primitives are given."""
    reconstruction, values, indices = _SparsePass.apply(  # type: ignore[no-untyped-call]
        primitives,
        x.to(encoder.dtype),
        encoder,
        encoder_bias,
        decoder,
        decoder_bias,
        subtracts_bias,
        k,
    )
    return reconstruction, SparseLatents(values, indices, len(encoder))


class _SparsePass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        primitives: Primitives,
        x: Tensor,
        encoder: Tensor,
        encoder_bias: Tensor | None,
        decoder: Tensor | None,
        decoder_bias: Tensor | None,
        subtracts_bias: bool,
        k: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        given, dtype = encoder.dtype, primitives.dtype(x)
        shifted = x - decoder_bias if subtracts_bias and decoder_bias is not None else x
        shifted, read = shifted.to(dtype), encoder.to(dtype)
        write = None if decoder is None else decoder.to(dtype)
        values, indices = primitives.select_rows(shifted, read, encoder_bias, k)
        values = values.to(given)
        made = primitives.weighted_rows(values, indices, read if write is None else write)
        if decoder_bias is not None:
            made += decoder_bias
        ctx.save_for_backward(shifted, read, write, values, indices)
        ctx.primitives, ctx.subtracts_bias = primitives, subtracts_bias
        ctx.mark_non_differentiable(indices)
        return made, values, indices

    @staticmethod
    def backward(
        ctx: Any, of_made: Tensor, of_values: Tensor, of_indices: Tensor
    ) -> tuple[Tensor | None, ...]:
        raise_on_double_backward("autoencode")
        x, encoder, decoder, values, indices = ctx.saved_tensors
        for_x, for_encoder, for_bias, for_decoder, for_shift = ctx.needs_input_grad[1:6]
        primitives = ctx.primitives
        shift = of_made.sum(dim=0) if for_shift else None
        of_made = of_made.to(x.dtype).contiguous()
        dictionary = encoder if decoder is None else decoder
        kept = primitives.sampled_products(of_made, indices, values, dictionary, of_values)
        columns = primitives.columns(values, indices, len(encoder))
        gradients: list[Tensor | None] = [None] * 8
        if for_encoder and decoder is None:
            gradients[1] = columns.sums(kept, x, values, of_made)
        elif for_encoder:
            gradients[1] = columns.sums(kept, x)
        if for_decoder:
            gradients[3] = columns.sums(values, of_made)
        totals = columns.totals(kept) if for_bias or (for_shift and ctx.subtracts_bias) else None
        if for_bias:
            gradients[2] = totals
        if shift is not None:
            if ctx.subtracts_bias:
                shift -= totals @ encoder.to(kept.dtype)
            gradients[4] = shift
        if for_x:
            gradients[0] = primitives.weighted_rows(kept, indices, encoder)
        return None, *gradients[:-1]


# Elements of latents that are in memory before the largest have been chosen.
CHUNK = 1 << 23


def sparse_pass(
    x: Tensor,
    encoder: Tensor,
    encoder_bias: Tensor | None,
    decoder: Tensor | None,
    decoder_bias: Tensor | None,
    subtracts_bias: bool,
    k: int,
) -> tuple[Tensor, SparseLatents]:
    """As `autoencode`, by lists; all on the CPU, weights in float32 or float64."""
    return listed(LOOPS, x, encoder, encoder_bias, decoder, decoder_bias, subtracts_bias, k)


def select_rows(x: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest positive of `W x + b` of each row, ties included, and their columns.

    Args:
        x: `(rows, inputs)`.
        weight: `(latents, inputs)`, in float32 or float64.
        bias: `(latents,)`.
        k: How many.

    Returns:
        Values and int32 indices, `(rows, room)`, where room is `k` unless ties need more; zeros
        where a row has fewer.
    """
    dtype = autocast_dtype(x)
    kept, indices = weight.new_empty(len(x), k), torch.empty(len(x), k, dtype=torch.int32)
    counts = np.zeros(len(x), dtype=np.int64)
    factor = weight.T if dtype is None else weight.to(dtype).T
    term = bias if dtype is None or bias is None else bias.to(dtype)
    rows = max(1, CHUNK // len(weight))
    buffer = x.new_empty(min(rows, len(x)), len(weight), dtype=factor.dtype)
    for start in range(0, len(x), rows):
        part = x[start : start + rows].to(factor.dtype)
        chunk = buffer[: len(part)]
        if term is None:
            torch.mm(part, factor, out=chunk)
        else:
            torch.addmm(term, part, factor, out=chunk)
        values = chunk.to(weight.dtype)
        while True:
            _select(values, k, start, kept, indices, counts)
            room = int(counts[start : start + len(part)].max())
            if room <= kept.shape[1]:
                break
            # Rows with ties have more: only now is it known how many.
            more = room - kept.shape[1]
            kept = torch.nn.functional.pad(kept, (0, more))
            indices = torch.nn.functional.pad(indices, (0, more))
            kept[start + len(part) :], indices[start + len(part) :] = 0.0, 0
    return kept, indices


def _select(
    values: Tensor, k: int, first: int, kept: Tensor, indices: Tensor, counts: NDArray[np.int64]
) -> None:
    array = values.numpy()
    in_parallel(
        loops.select_positive,
        len(array),
        array,
        array.view(INTEGERS[values.dtype]),
        k,
        first,
        kept.numpy(),
        indices.numpy(),
        counts,
    )


def weighted_rows(weights: Tensor, indices: Tensor, matrix: Tensor) -> Tensor:
    """Rows of a matrix `(columns, width)`, summed up with weights `(rows, room)` at indices."""
    out = matrix.new_empty(len(weights), matrix.shape[1])
    in_parallel(loops.weighted_rows, len(weights), *_arrays(weights, indices, matrix, out))
    return out


def sampled_products(
    left: Tensor, indices: Tensor, values: Tensor, matrix: Tensor, start: Tensor
) -> Tensor:
    """`start` and the products of rows of `left` with rows of a matrix; 0 where values are not > 0.

    Args:
        left: `(rows, width)`.
        indices: Rows of the matrix, `(rows, room)`.
        values: `(rows, room)`.
        matrix: `(columns, width)`.
        start: `(rows, room)`.

    Returns:
        `(rows, room)`.
    """
    out = start.clone(memory_format=torch.contiguous_format)
    in_parallel(loops.sampled_products, len(left), *_arrays(left, indices, values, matrix, out))
    return out


class Columns:
    """The entries of sparse latents, by latent.

    Args:
        values: `(rows, room)`.
        indices: `(rows, room)`.
        width: How many latents there are.
    """

    def __init__(self, values: Tensor, indices: Tensor, width: int) -> None:
        self.width = width
        offsets = np.empty(width + 1, dtype=np.int64)
        rows, entries = (np.empty(values.numel(), dtype=np.int32) for _ in range(2))
        kept, columns = _arrays(values, indices)
        loops.by_column(kept, columns, offsets, rows, entries)
        # Where each latent begins in the order by latents, and each entry's row and place in it.
        self.places = (offsets, rows, entries)

    def sums(
        self,
        weights: Tensor,
        matrix: Tensor,
        other_weights: Tensor | None = None,
        other: Tensor | None = None,
    ) -> Tensor:
        """The rows of a matrix `(rows, inputs)` that have each latent, with weights, summed up.

        Given another matrix with other weights, its sums are added.

        Returns:
            `(width, inputs)`.
        """
        out = matrix.new_empty(self.width, matrix.shape[1])
        if other_weights is None or other is None:
            arrays = _arrays(weights, matrix, out)
            in_parallel(loops.column_sums, self.width, *self.places, *arrays)
        else:
            arrays = _arrays(weights, matrix, other_weights, other, out)
            in_parallel(loops.two_column_sums, self.width, *self.places, *arrays)
        return out

    def totals(self, weights: Tensor) -> Tensor:
        """The weights of each latent summed up, `(width,)`."""
        out = weights.new_empty(self.width)
        in_parallel(loops.column_totals, self.width, *self.places, *_arrays(weights, out))
        return out


def _arrays(*tensors: Tensor) -> tuple[NDArray[Any], ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


def _dtype(x: Tensor) -> torch.dtype:
    return x.dtype


LOOPS = Primitives(_dtype, select_rows, weighted_rows, sampled_products, Columns)
