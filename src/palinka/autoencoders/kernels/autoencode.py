"""Encode and decode."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from palinka.autoencoders.kernels import dispatch
from palinka.autoencoders.kernels.dense import dense_pass
from palinka.autoencoders.kernels.sparse import sparse_pass
from palinka.autoencoders.kernels.topk import Latents, keep_top_k_plain


class Weights(NamedTuple):
    """What an autoencoder computes with."""

    encoder: Tensor
    """`(latents, inputs)`."""
    encoder_bias: Tensor | None = None
    """`(latents,)`."""
    decoder: Tensor | None = None
    """`(latents, outputs)`; None where that is the encoder's."""
    decoder_bias: Tensor | None = None
    """`(outputs,)`."""
    subtracts_bias: bool = False
    """Whether the decoder's bias is subtracted from the input."""

    @property
    def dictionary(self) -> Tensor:
        """The direction that each latent writes, `(latents, outputs)`."""
        return self.encoder if self.decoder is None else self.decoder


def autoencode_plain(x: Tensor, weights: Weights, k: int) -> tuple[Tensor, Tensor]:
    """What `autoencode` computes, as it is defined."""
    if weights.subtracts_bias and weights.decoder_bias is not None:
        x = x - weights.decoder_bias
    values = functional.linear(x, weights.encoder, weights.encoder_bias).relu()
    latents = keep_top_k_plain(values, k)
    return functional.linear(latents, weights.dictionary.T, weights.decoder_bias), latents


def autoencode(x: Tensor, weights: Weights, k: int) -> tuple[Tensor, Latents]:
    """Keep the `k` largest of `ReLU(W x + b)`, ties included, and write what they stand for.

    Under autocast the matrix products are done in its dtype. Differentiable once.

    Args:
        x: `(rows, inputs)`.
        weights: Of the encoder and the decoder.
        k: How many latents a row keeps, from 1 to their number.

    Returns:
        The reconstruction, `(rows, outputs)`, and the latents, `(rows, latents)`, as
        `SparseLatents` where that costs less.
    """
    if dispatch.use_triton(len(x), len(weights.encoder), k, weights.encoder):
        # Triton comes with torch for GPUs only.
        from palinka.autoencoders.kernels.triton import triton_pass

        return triton_pass(x, *weights, k)
    if dispatch.use_sparse(len(x), len(weights.encoder), k, weights.encoder):
        return sparse_pass(x, *weights, k)
    return dense_pass(x, *weights, k)
