"""What the architectures with a decoder of their own share: parameters, start and decoding."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from palinka.autoencoders.base import Autoencoder, positive_integer


class UntiedAutoencoder(Autoencoder):
    """A linear encoder, and a decoder with weights and a bias of its own.

    At the start the decoder's rows point in random directions, the encoder is a copy of it (of a
    transcoder, drawn by itself in the same way), and all biases are zero: a subclass calls
    `reset_parameters` once it has made its own.

    Args:
        input_dim: Width of the activations.
        latent_dim: Number of latents; `2 * input_dim` where left out.
        encoder_bias: Whether the encoder has a bias.
        subtract_decoder_bias: Whether the decoder's bias is subtracted before encoding, which no
            transcoder does.
        unit_norm: Give every latent's direction norm 1, at first and throughout training.
        output_dim: Width of what a transcoder gives.

    Raises:
        InputError: If a dimension is not a positive integer.
    """

    first_norm: float = 1.0
    """Norm of the decoder's rows at the start."""

    def __init__(
        self,
        input_dim: int,
        latent_dim: int | None,
        *,
        encoder_bias: bool = True,
        subtract_decoder_bias: bool,
        unit_norm: bool,
        output_dim: int | None = None,
    ) -> None:
        positive_integer("input_dim", input_dim)
        super().__init__(input_dim, 2 * input_dim if latent_dim is None else latent_dim, output_dim)
        self.subtract_decoder_bias = subtract_decoder_bias and not self.is_transcoder
        self.unit_norm = unit_norm
        self.encoder = nn.Linear(self.input_dim, self.latent_dim, bias=encoder_bias)
        self.decoder_weight = nn.Parameter(torch.empty(self.latent_dim, self.output_dim))
        self.decoder_bias = nn.Parameter(torch.empty(self.output_dim))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the directions anew, uniform on the sphere; biases are zero."""
        self._draw(self.decoder_weight)
        if self.is_transcoder:
            self._draw(self.encoder.weight)
        else:
            self.encoder.weight.copy_(self.decoder_weight)
        if self.encoder.bias is not None:
            self.encoder.bias.zero_()
        self.decoder_bias.zero_()

    @property
    def dictionary(self) -> Tensor:
        """The direction that each latent writes, `(latent_dim, output_dim)`; not a copy."""
        return self.decoder_weight

    def encoder_output(self, x: Tensor) -> Tensor:
        """What the encoder makes of activations `(…, input_dim)`, before any nonlinearity."""
        self.check_width(x, self.input_dim, "activations")
        read: Tensor = self.encoder(x - self.decoder_bias if self.subtract_decoder_bias else x)
        return read

    def decode(self, latents: Tensor) -> Tensor:
        """Latents `(…, latent_dim)` to activations `(…, output_dim)`."""
        self.check_width(latents, self.latent_dim, "latents")
        return functional.linear(latents, self.decoder_weight.T, self.decoder_bias)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON holds them."""
        return {
            "input_dim": self.input_dim,
            "latent_dim": self.latent_dim,
            "subtract_decoder_bias": self.subtract_decoder_bias,
            "unit_norm": self.unit_norm,
            **self.transcoder_config,
        }

    def extra_repr(self) -> str:
        """The configuration, in the printed module."""
        return ", ".join(f"{name}={value}" for name, value in self.config().items())

    def _draw(self, weight: Tensor) -> None:
        norm = 1.0 if self.unit_norm else self.first_norm
        weight.normal_()
        weight.mul_(norm / weight.norm(dim=1, keepdim=True))
