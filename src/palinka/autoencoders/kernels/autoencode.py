"""Encode and decode."""

from torch import Tensor

from palinka.autoencoders.kernels.dense import Weights, dense_autograd
from palinka.autoencoders.kernels.dispatch import use_sparse, use_triton
from palinka.autoencoders.kernels.sparse import sparse_autograd
from palinka.autoencoders.kernels.topk import Latents


def autoencode(x: Tensor, weights: Weights, k: int) -> tuple[Tensor, Latents]:
    """Keep the `k` largest of `ReLU(W x + b)`, ties included, and decode.

    Under autocast the matrix products are done in its dtype. Differentiable once.

    Args:
        x: `(rows, inputs)`.
        weights: Encoder and decoder.
        k: Latents kept per row, from 1 to their number.

    Returns:
        The reconstruction, `(rows, outputs)`, and the latents, `(rows, latents)`, as
        `SparseLatents` where that is faster.
    """
    if use_triton(x, weights.encoder, k):
        # Triton comes only with torch for GPUs.
        from palinka.autoencoders.kernels.triton import triton_autograd

        return triton_autograd(x, weights, k)
    if use_sparse(x, weights.encoder, k):
        return sparse_autograd(x, weights, k)
    return dense_autograd(x, weights, k)
