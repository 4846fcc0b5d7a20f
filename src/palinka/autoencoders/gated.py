"""The gated autoencoder: whether a latent is active and how strongly, from shared directions."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from palinka.autoencoders.untied import UntiedAutoencoder


class GatedPreActivations(NamedTuple):
    """What the two paths of the encoder read, before their nonlinearities."""

    gate: Tensor
    """`(…, latent_dim)`; a latent is active where this is positive."""
    magnitude: Tensor
    """`(…, latent_dim)`; what an active latent is worth, if positive."""

    def latents(self) -> Tensor:
        """The latents `(…, latent_dim)`; no gradient passes to the gate."""
        return self.magnitude.relu() * (self.gate > 0)


class GatedAutoencoder(UntiedAutoencoder):
    """`1[gate > 0] · ReLU(magnitude)`, both linear in `x - b_dec` along the same directions.

    With `W` the encoder's weight, `gate = W (x - b_dec) + gate_bias` and
    `magnitude = exp(log_magnitude) · W (x - b_dec) + magnitude_bias`, latent by latent.

    Args:
        input_dim: Width of the activations.
        latent_dim: Number of latents; `2 * input_dim` where left out.
        subtract_decoder_bias: Subtract the decoder's bias before encoding.
        unit_norm: Give every latent's direction norm 1, at first and throughout training.
        output_dim: Width of what a transcoder gives.

    Raises:
        InputError: If a dimension is not a positive integer.

    Source:
        Rajamanoharan et al. (2024), Improving dictionary learning with gated sparse autoencoders,
        arXiv 2404.16014.
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int | None = None,
        subtract_decoder_bias: bool = True,
        unit_norm: bool = True,
        output_dim: int | None = None,
    ) -> None:
        super().__init__(
            input_dim,
            latent_dim,
            encoder_bias=False,
            subtract_decoder_bias=subtract_decoder_bias,
            unit_norm=unit_norm,
            output_dim=output_dim,
        )
        self.gate_bias = nn.Parameter(torch.empty(self.latent_dim))
        self.magnitude_bias = nn.Parameter(torch.empty(self.latent_dim))
        self.log_magnitude = nn.Parameter(torch.empty(self.latent_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the directions anew; the gate and the magnitude begin alike."""
        super().reset_parameters()
        for parameter in (self.gate_bias, self.magnitude_bias, self.log_magnitude):
            parameter.zero_()

    def pre_activations(self, x: Tensor) -> GatedPreActivations:
        """What gate and magnitude read of activations `(…, input_dim)`."""
        read = self.encoder_output(x)
        return GatedPreActivations(
            gate=read + self.gate_bias,
            magnitude=read * self.log_magnitude.exp() + self.magnitude_bias,
        )

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        return self.pre_activations(x).latents()
