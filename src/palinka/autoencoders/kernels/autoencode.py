"""Encode and decode: plain definition, and by matrix products."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from palinka.autoencoders.kernels import loops
from palinka.autoencoders.kernels.sparse import Weights
from palinka.autoencoders.kernels.topk import keep_positive_, keep_top_k_plain


def autoencode_plain(x: Tensor, weights: Weights, k: int) -> tuple[Tensor, Tensor]:
    """Definition of `palinka.autoencoders.linear.autoencode`."""
    values = functional.linear(weights.shift(x), weights.encoder, weights.encoder_bias).relu()
    latents = keep_top_k_plain(values, k)
    dictionary = weights.encoder if weights.decoder is None else weights.decoder
    return functional.linear(latents, dictionary.T, weights.decoder_bias), latents


def dense_autograd(x: Tensor, weights: Weights, k: int) -> tuple[Tensor, Tensor]:
    """`autoencode` by matrix products."""
    made, latents = _Dense.apply(x, *weights, k)  # type: ignore[no-untyped-call]
    return made, latents


class _Dense(torch.autograd.Function):
    """Tied weights have one product as gradient.

    With `Z` the latents, `A` the gradient of what they were chosen from and `R` that of the
    reconstruction, it is `Aᵀ X + Zᵀ R`: the product of `A` over `Z` and `X` over `R`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights_and_k: Any) -> tuple[Tensor, Tensor]:
        weights, k = Weights(*weights_and_k[:-1]), weights_and_k[-1]
        ctx.set_materialize_grads(False)
        dtype = loops.autocast_dtype(x) or torch.promote_types(x.dtype, weights.encoder.dtype)
        ctx.x_dtype, ctx.dtype = x.dtype, weights.encoder.dtype
        ctx.tied, ctx.subtracts_bias = weights.decoder is None, weights.subtracts_bias
        with torch.autocast(x.device.type, enabled=False):
            x, encoder = weights.shift(x).to(dtype), weights.encoder.to(dtype)
            decoder = encoder if weights.decoder is None else weights.decoder.to(dtype)
            latents = keep_positive_(_product(x, encoder.T, weights.encoder_bias), k)
            made = _product(latents, decoder, weights.decoder_bias)
        ctx.save_for_backward(x, encoder, decoder, latents)
        return made, latents

    @staticmethod
    def backward(
        ctx: Any, of_made: Tensor | None, of_latents: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        loops.raise_on_double_backward("autoencode")
        x, encoder, decoder, latents = ctx.saved_tensors
        needs_x, needs_encoder, needs_bias, needs_decoder, needs_shift = ctx.needs_input_grad[:5]
        if of_made is None:
            of_made = decoder.new_zeros(len(x), decoder.shape[1])
        of_made = of_made.to(x.dtype)
        gradients: list[Tensor | None] = [None] * 7
        with torch.autocast(x.device.type, enabled=False):
            kept = of_made @ decoder.T
            if of_latents is not None:
                kept += of_latents
            torch.ops.aten.threshold_backward.grad_input(kept, latents, 0, grad_input=kept)
            if needs_encoder and ctx.tied:
                both = torch.cat([kept, latents]).T @ torch.cat([x, of_made])
                gradients[1] = both.to(ctx.dtype)
            elif needs_encoder:
                gradients[1] = (kept.T @ x).to(ctx.dtype)
            if needs_decoder:
                gradients[3] = (latents.T @ of_made).to(ctx.dtype)
            if needs_bias or (needs_shift and ctx.subtracts_bias):
                totals = kept.sum(dim=0, dtype=ctx.dtype)
            if needs_bias:
                gradients[2] = totals
            if needs_shift:
                gradients[4] = of_made.sum(dim=0, dtype=ctx.dtype)
                if ctx.subtracts_bias:
                    gradients[4] -= totals @ encoder.to(ctx.dtype)
            if needs_x:
                gradients[0] = (kept @ encoder).to(ctx.x_dtype)
        return tuple(gradients)


def _product(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return rows @ matrix if bias is None else torch.addmm(bias.to(rows.dtype), rows, matrix)
