"""The pass through an autoencoder in which latents are lists of the few that are not zero."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from palinka.kernels.once import refuse_second_derivative
from palinka.kernels.sparse_latents import SparseLatents


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
        refuse_second_derivative("autoencode")
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
