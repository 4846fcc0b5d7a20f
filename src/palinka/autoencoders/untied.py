"""Base class of untied autoencoders."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from palinka.autoencoders.base import Autoencoder


class UntiedAutoencoder(Autoencoder):
    """A linear encoder, and a decoder with weights and a bias of its own.

    At the start the decoder's rows are random directions, uniform on the sphere, the encoder is a
    copy of it (for a transcoder, drawn independently in the same way), and all biases are zero.

    Args:
        input_dim: Width of the activations.
        latent_dim: Number of latents; default `2 * input_dim`.
        subtract_decoder_bias: Subtract the decoder's bias before encoding; a transcoder never
            does.
        unit_norm: Give every latent's direction norm 1, at the start and throughout training.
        output_dim: Width of a transcoder's output; None for an autoencoder.

    Raises:
        InputError: If a dimension is not a positive integer.
    """

    encoder_bias: bool = True
    """True if the encoder has a bias."""
    initial_norm: float = 1.0
    """Norm of the decoder's rows at the start, without `unit_norm`."""

    def __init__(
        self,
        input_dim: int,
        latent_dim: int | None = None,
        *,
        subtract_decoder_bias: bool = True,
        unit_norm: bool = True,
        output_dim: int | None = None,
    ) -> None:
        super().__init__(input_dim, latent_dim, output_dim)
        self.subtract_decoder_bias = subtract_decoder_bias and not self.is_transcoder
        self.unit_norm = unit_norm
        self.encoder = nn.Linear(self.input_dim, self.latent_dim, bias=self.encoder_bias)
        self.decoder_weight = nn.Parameter(torch.empty(self.latent_dim, self.output_dim))
        self.decoder_bias = nn.Parameter(torch.zeros(self.output_dim))
        with torch.no_grad():
            self._draw(self.decoder_weight)
            if self.is_transcoder:
                self._draw(self.encoder.weight)
            else:
                self.encoder.weight.copy_(self.decoder_weight)
            if self.encoder.bias is not None:
                self.encoder.bias.zero_()

    @property
    def dictionary(self) -> Tensor:
        """Decoder directions, `(latent_dim, output_dim)`; not a copy."""
        return self.decoder_weight

    def encoder_output(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to `(…, latent_dim)`, before any nonlinearity."""
        self.check_width(x, self.input_dim, "activations")
        output: Tensor = self.encoder(x - self.decoder_bias if self.subtract_decoder_bias else x)
        return output

    def decode(self, latents: Tensor) -> Tensor:
        """Latents `(…, latent_dim)` to activations `(…, output_dim)`."""
        self.check_width(latents, self.latent_dim, "latents")
        return functional.linear(latents, self.decoder_weight.T, self.decoder_bias)

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return {
            **super().config(),
            "subtract_decoder_bias": self.subtract_decoder_bias,
            "unit_norm": self.unit_norm,
        }

    def _draw(self, weight: Tensor) -> None:
        norm = 1.0 if self.unit_norm else self.initial_norm
        weight.normal_()
        weight.mul_(norm / weight.norm(dim=1, keepdim=True))
