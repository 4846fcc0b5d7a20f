"""The gated autoencoder: a gate and a magnitude per latent, along shared directions."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from palinka.autoencoders.untied import UntiedAutoencoder


class GatedPreActivations(NamedTuple):
    """Outputs of the encoder's two paths, before their nonlinearities."""

    gate: Tensor
    """`(…, latent_dim)`; a latent is active where this is positive."""
    magnitude: Tensor
    """`(…, latent_dim)`; the value of an active latent, if positive."""

    def latents(self) -> Tensor:
        """The latents `(…, latent_dim)`; no gradient passes to the gate."""
        return self.magnitude.relu() * (self.gate > 0)


class GatedAutoencoder(UntiedAutoencoder):
    """`1[gate > 0] · ReLU(magnitude)`, both linear in `x - b_dec` along the same directions.

    With `W` the encoder's weight, `gate = W (x - b_dec) + gate_bias` and
    `magnitude = exp(log_magnitude) · W (x - b_dec) + magnitude_bias`, latent by latent.

    Source:
        Rajamanoharan et al. (2024), Improving dictionary learning with gated sparse autoencoders,
        arXiv 2404.16014.
    """

    encoder_bias = False

    def __init__(self, input_dim: int, latent_dim: int | None = None, **settings: Any) -> None:
        super().__init__(input_dim, latent_dim, **settings)
        self.gate_bias = nn.Parameter(torch.zeros(self.latent_dim))
        self.magnitude_bias = nn.Parameter(torch.zeros(self.latent_dim))
        self.log_magnitude = nn.Parameter(torch.zeros(self.latent_dim))

    def pre_activations(self, x: Tensor) -> GatedPreActivations:
        """Gate and magnitude of activations `(…, input_dim)`."""
        shared = self.encoder_output(x)
        return GatedPreActivations(
            gate=shared + self.gate_bias,
            magnitude=shared * self.log_magnitude.exp() + self.magnitude_bias,
        )

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        return self.pre_activations(x).latents()
