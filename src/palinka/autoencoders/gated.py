from typing import Any

import torch
from torch import Tensor, nn

from palinka.autoencoders.linear import UntiedAutoencoder


class GatedAutoencoder(UntiedAutoencoder):
    """`1[gate > 0] · ReLU(magnitude)`, both linear in `x - b_dec` along the same directions.

    With `W` the encoder's weight, `gate = W (x - b_dec) + gate_bias` and
    `magnitude = exp(log_magnitude) · W (x - b_dec) + magnitude_bias`, latent by latent.

    Source:
        Rajamanoharan et al. (2024), gated sparse autoencoders, arXiv 2404.16014.
    """

    encoder_bias = False

    def __init__(self, input_dim: int, latent_dim: int | None = None, **settings: Any) -> None:
        super().__init__(input_dim, latent_dim, **settings)
        self.gate_bias = nn.Parameter(torch.zeros(self.latent_dim))
        self.magnitude_bias = nn.Parameter(torch.zeros(self.latent_dim))
        self.log_magnitude = nn.Parameter(torch.zeros(self.latent_dim))

    def gate_and_latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and latents `(…, latent_dim)` of `(…, input_dim)`; no gradient passes between."""
        shared = self.encoder_output(x)
        gate = shared + self.gate_bias
        magnitude = shared * self.log_magnitude.exp() + self.magnitude_bias
        return gate, magnitude.relu() * (gate > 0)

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        return self.gate_and_latents(x)[1]
