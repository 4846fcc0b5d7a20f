"""One pass through an autoencoder that keeps the k largest latents, by what costs less.

Of the sparse form only the encoder's matrix product is dense, and even of that no more than some
rows of latents are in memory at a time. The backward passes are written by hand: gradients of
kept latents are sampled from a product that is never made, and each row of a weight's gradient is
written once, from the rows of the batch that kept its latent.

Source:
    Gao et al. (2024), Scaling and evaluating sparse autoencoders, arXiv 2406.04093, appendix D,
    for the sparse products.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from palinka.kernels import choice
from palinka.kernels.dense_pass import dense_pass
from palinka.kernels.sparse_latents import Latents
from palinka.kernels.sparse_pass import sparse_pass
from palinka.kernels.topk import keep_top_k_plain


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
    if choice.triton_pays(len(x), len(weights.encoder), k, weights.encoder):
        # Triton comes with torch for GPUs only.
        from palinka.kernels.triton_pass import triton_pass

        return triton_pass(x, *weights, k)
    if choice.sparse_pays(len(x), len(weights.encoder), k, weights.encoder):
        return sparse_pass(x, *weights, k)
    return dense_pass(x, *weights, k)
