"""The TopK autoencoder."""

from typing import Any

import torch
from torch import Tensor

from palinka.autoencoders.base import validate_k
from palinka.autoencoders.kernels.loops import statistics_dtype
from palinka.autoencoders.kernels.topk import keep_top_k
from palinka.autoencoders.linear import UntiedAutoencoder

TOLERANCE, MAX_STEPS = 1e-6, 500


@torch.no_grad()
def geometric_median(rows: Tensor) -> Tensor:
    """Find the geometric median of rows `(rows, width)`, to 1e-6 of their mean distance.

    Unlike the mean it is not drawn to a few enormous rows. In float32 or better.

    Source:
        Weiszfeld (1937); Vardi & Zhang (2000), for steps from a point that is itself a row.
    """
    rows = rows.to(statistics_dtype(rows.dtype))
    point = rows.mean(dim=0)
    for _ in range(MAX_STEPS):
        distances = (rows - point).norm(dim=1)
        here = distances == 0
        weights = distances.reciprocal().masked_fill(here, 0.0)
        total = weights.sum()
        if total == 0:  # all rows are one point
            break
        step = weights @ rows / total - point
        # Rows that lie on the point hold it there, up to the pull of the others.
        pull = total * step.norm()
        step = step * (1.0 - here.sum() / pull).clamp_min(0.0).nan_to_num(0.0)
        point = point + step
        if step.norm() <= TOLERANCE * distances.mean():
            break
    return point


class TopKAutoencoder(UntiedAutoencoder):
    """Keep the k largest of `ReLU(W_enc (x - b_dec) + b_enc)`.

    Values that tie with the k-th largest are all kept, where the paper's code keeps any k. In a
    new fit, `b_dec` begins as the geometric median of training rows.

    Args:
        k: Number of latents per row; default `input_dim // 2`.

    Source:
        Gao et al. (2024), Scaling and evaluating sparse autoencoders, arXiv 2406.04093.
    """

    keeps_top_k = True

    def __init__(
        self, input_dim: int, latent_dim: int | None = None, k: int | None = None, **settings: Any
    ) -> None:
        super().__init__(input_dim, latent_dim, **settings)
        self.k = validate_k(k, self.input_dim, self.latent_dim)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set the decoder's bias to the geometric median of rows `(rows, output_dim)`."""
        self.decoder_bias.copy_(geometric_median(x))

    def candidates(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to `(…, latent_dim)`, before latents are selected."""
        return self.encoder_output(x).relu()

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        return keep_top_k(self.candidates(x), self.k)
