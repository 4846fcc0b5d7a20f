from typing import Any

import torch
from torch import Tensor
from torch.nn import Buffer

from palinka.autoencoders.kernels.topk import batch_threshold
from palinka.autoencoders.topk import TopKAutoencoder

# Share by which the running threshold moves towards that of a batch, as in the paper's code.
RATE = 0.01


class BatchTopKAutoencoder(TopKAutoencoder):
    """Keep the `k · rows` largest of `ReLU(W_enc (x - b_dec) + b_enc)` over a batch of rows.

    `encode` does so in `train()` mode, ties with the smallest kept value included. In `eval()` mode
    a latent is kept if it exceeds `threshold`, whatever the other rows are. Training moves that by
    a hundredth of the way towards the smallest value that each batch keeps; it begins with that of
    the first, and is 0 before. It takes some hundred steps to settle, and until then the L0 of a
    validation may be far from `k`.

    Args:
        k: Mean number of latents per row; default `input_dim // 2`.

    Source:
        Bussmann et al. (2024), BatchTopK sparse autoencoders, arXiv 2412.06410; for the start,
        Gao et al. (2024), arXiv 2406.04093.
    """

    def __init__(
        self, input_dim: int, latent_dim: int | None = None, k: int | None = None, **settings: Any
    ) -> None:
        super().__init__(input_dim, latent_dim, k, **settings)
        self.threshold = Buffer(torch.zeros(()))

    @torch.no_grad()
    def move_threshold(self, smallest: Tensor) -> None:
        """Move `threshold` towards the smallest value that a training batch keeps, a scalar."""
        moved = self.threshold.lerp(smallest.to(self.threshold.dtype), RATE)
        self.threshold.copy_(torch.where(self.threshold == 0, smallest, moved))

    def decode_prefixes(self, latents: Tensor) -> list[Tensor]:
        """Latents `(…, latent_dim)` to the reconstructions that training compares: the whole."""
        return [self.decode(latents)]

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        values = self.candidates(x)
        if not self.training:
            # With a dimension, so that values of bfloat16 are compared in the threshold's dtype.
            return values.masked_fill(values.detach() <= self.threshold[None], 0.0)
        if not values.numel():
            return values
        return values.masked_fill(values.detach() < batch_threshold(values, self.k), 0.0)
