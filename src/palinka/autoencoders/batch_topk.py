"""The BatchTopK autoencoder: a batch keeps k latents per row on average."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Buffer

from palinka.autoencoders.base import checked_k
from palinka.autoencoders.kernels import batch_threshold
from palinka.autoencoders.topk import geometric_median
from palinka.autoencoders.untied import UntiedAutoencoder

# How far the running threshold moves towards that of a batch, as in the paper's code.
RATE = 0.01


class BatchTopKAutoencoder(UntiedAutoencoder):
    """Keep, of a batch's `ReLU(W_enc (x - b_dec) + b_enc)`, the k largest for each of its rows.

    A row may keep more than k, and another fewer. That is how it trains, and what `encode` does
    in `train()` mode with the batch that it is given, ties with the smallest kept value included.
    In `eval()` mode a latent is kept if it exceeds `threshold`, whatever the other rows are.

    Training moves `threshold` by a hundredth of the way towards the smallest value that each
    batch keeps; it begins with that of the first, and is 0 before.

    Args:
        input_dim: Width of the activations.
        latent_dim: Number of latents; `2 * input_dim` where left out.
        k: How many latents a row keeps on average; `input_dim // 2` where left out.
        subtract_decoder_bias: Subtract the decoder's bias before encoding.
        unit_norm: Give every latent's direction norm 1, at first and throughout training.
        output_dim: Width of what a transcoder gives.

    Raises:
        InputError: If a dimension is not a positive integer or `k` is not in 1 … `latent_dim`.

    Source:
        Bussmann et al. (2024), BatchTopK sparse autoencoders, arXiv 2412.06410; for the start,
        Gao et al. (2024), arXiv 2406.04093.
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
        self.threshold = Buffer(torch.empty(()))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the directions anew; biases and threshold are zero."""
        super().reset_parameters()
        self.threshold.zero_()

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Begin with the geometric median of rows `(rows, input_dim)` as the decoder's bias."""
        self.decoder_bias.copy_(geometric_median(x))

    @torch.no_grad()
    def move_threshold(self, smallest: Tensor) -> None:
        """Take the smallest value that a training batch keeps, a scalar, into `threshold`."""
        moved = self.threshold.lerp(smallest.to(self.threshold.dtype), RATE)
        self.threshold.copy_(torch.where(self.threshold == 0, smallest, moved))

    def candidates(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to what the latents are chosen from, before any choice."""
        return self.encoder_output(x).relu()

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        values = self.candidates(x)
        if not self.training:
            # With a dimension, so that values of bfloat16 are compared in the threshold's dtype.
            return values.masked_fill(values.detach() <= self.threshold[None], 0.0)
        if not values.numel():
            return values
        return values.masked_fill(values.detach() < batch_threshold(values, self.k), 0.0)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON holds them."""
        return {**super().config(), "k": self.k}
