"""The TopK autoencoder."""

from typing import Any

import torch
from torch import Tensor

from palinka.autoencoders.base import AutoencoderOutput, CompactOutput, checked_k
from palinka.autoencoders.kernels import Weights, autoencode, keep_top_k
from palinka.autoencoders.kernels.dispatch import statistics_dtype
from palinka.autoencoders.untied import UntiedAutoencoder

TOLERANCE = 1e-6
MOST_STEPS = 500


@torch.no_grad()
def geometric_median(rows: Tensor) -> Tensor:
    """Find the geometric median of rows, until a step is a millionth of their mean distance.

    Unlike the mean it is not drawn to a few rows of enormous norm.

    Args:
        rows: `(rows, width)`, at least one.

    Returns:
        `(width,)`, in float32 or better.

    Source:
        Weiszfeld (1937); Vardi & Zhang (2000), the multivariate L1-median and associated data
        depth, for steps from a point that is itself a row.
    """
    rows = rows.to(statistics_dtype(rows.dtype))
    point = rows.mean(dim=0)
    for _ in range(MOST_STEPS):
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

    Values that tie with the k-th largest are all kept, where the paper's code keeps any k. The
    encoder begins as a copy of the decoder, and `b_dec`, in a new fit, as the geometric median of
    training rows.

    Args:
        input_dim: Width of the activations.
        latent_dim: Number of latents; `2 * input_dim` where left out.
        k: How many latents a row keeps; `input_dim // 2` where left out.
        subtract_decoder_bias: Subtract the decoder's bias before encoding.
        unit_norm: Give every latent's direction norm 1, at first and throughout training.
        output_dim: Width of what a transcoder gives.

    Raises:
        InputError: If a dimension is not a positive integer or `k` is not in 1 … `latent_dim`.

    Source:
        Gao et al. (2024), Scaling and evaluating sparse autoencoders, arXiv 2406.04093.
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int | None = None,
        k: int | None = None,
        subtract_decoder_bias: bool = True,
        unit_norm: bool = True,
        output_dim: int | None = None,
    ) -> None:
        super().__init__(
            input_dim,
            latent_dim,
            subtract_decoder_bias=subtract_decoder_bias,
            unit_norm=unit_norm,
            output_dim=output_dim,
        )
        self.k = checked_k(k, self.input_dim, self.latent_dim)
        self.reset_parameters()

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Begin with the geometric median of rows `(rows, input_dim)` as the decoder's bias."""
        self.decoder_bias.copy_(geometric_median(x))

    def candidates(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to what the latents are chosen from, before any choice."""
        return self.encoder_output(x).relu()

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        return keep_top_k(self.candidates(x), self.k)

    def compact(self, x: Tensor) -> AutoencoderOutput | CompactOutput:
        """Encode and decode activations `(rows, input_dim)`; few latents come as a list."""
        # A subclass may compute something else.
        if type(self) is not TopKAutoencoder:
            return super().compact(x)
        self.check_width(x, self.input_dim, "activations")
        weights = Weights(
            self.encoder.weight,
            self.encoder.bias,
            self.decoder_weight,
            self.decoder_bias,
            subtracts_bias=self.subtract_decoder_bias,
        )
        return CompactOutput(*autoencode(x, weights, self.k))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON holds them."""
        return {**super().config(), "k": self.k}
