"""Dense kernels."""

from typing import Any

import torch
from torch import Tensor

from palinka.autoencoders.kernels.dispatch import autocast_dtype, raise_on_double_backward
from palinka.autoencoders.kernels.topk import keep_positive_


def dense_pass(
    x: Tensor,
    encoder: Tensor,
    encoder_bias: Tensor | None,
    decoder: Tensor | None,
    decoder_bias: Tensor | None,
    subtracts_bias: bool,
    k: int,
) -> tuple[Tensor, Tensor]:
    """As `autoencode`, by matrix products."""
    made, latents = _DensePass.apply(  # type: ignore[no-untyped-call]
        x, encoder, encoder_bias, decoder, decoder_bias, subtracts_bias, k
    )
    return made, latents


class _DensePass(torch.autograd.Function):
    """Where encoder and decoder are one matrix, so is the product that its gradient is.

    With `Z` the latents, `A` the gradient of what they were chosen from and `R` that of the
    reconstruction, it is `Aᵀ X + Zᵀ R`: one product with `A` over `Z` and `X` over `R`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        encoder: Tensor,
        encoder_bias: Tensor | None,
        decoder: Tensor | None,
        decoder_bias: Tensor | None,
        subtracts_bias: bool,
        k: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.given = x.dtype
        dtype = autocast_dtype(x) or torch.promote_types(x.dtype, encoder.dtype)
        with torch.autocast(x.device.type, enabled=False):
            if subtracts_bias and decoder_bias is not None:
                x = x - decoder_bias
            x, read = x.to(dtype), encoder.to(dtype)
            write = read if decoder is None else decoder.to(dtype)
            latents = keep_positive_(_product(x, read.T, encoder_bias), k)
            made = _product(latents, write, decoder_bias)
        ctx.save_for_backward(x, read, write, latents)
        ctx.tied, ctx.subtracts_bias = decoder is None, subtracts_bias
        ctx.dtype = encoder.dtype
        return made, latents

    @staticmethod
    def backward(
        ctx: Any, of_made: Tensor | None, of_latents: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        raise_on_double_backward("autoencode")
        x, read, write, latents = ctx.saved_tensors
        for_x, for_encoder, for_bias, for_decoder, for_shift = ctx.needs_input_grad[:5]
        of_made = (
            write.new_zeros(len(x), write.shape[1]) if of_made is None else of_made.to(x.dtype)
        )
        gradients: list[Tensor | None] = [None] * 7
        with torch.autocast(x.device.type, enabled=False):
            kept = of_made @ write.T
            if of_latents is not None:
                kept += of_latents
            torch.ops.aten.threshold_backward.grad_input(kept, latents, 0, grad_input=kept)
            if for_encoder and ctx.tied:
                both = torch.cat([kept, latents]).T @ torch.cat([x, of_made])
                gradients[1] = both.to(ctx.dtype)
            elif for_encoder:
                gradients[1] = (kept.T @ x).to(ctx.dtype)
            if for_decoder:
                gradients[3] = (latents.T @ of_made).to(ctx.dtype)
            if for_bias or (for_shift and ctx.subtracts_bias):
                totals = kept.sum(dim=0, dtype=ctx.dtype)
            if for_bias:
                gradients[2] = totals
            if for_shift:
                gradients[4] = of_made.sum(dim=0, dtype=ctx.dtype)
                if ctx.subtracts_bias:
                    gradients[4] -= totals @ read.to(ctx.dtype)
            if for_x:
                gradients[0] = (kept @ read).to(ctx.given)
        return tuple(gradients)


def _product(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return rows @ matrix if bias is None else torch.addmm(bias.to(rows.dtype), rows, matrix)
