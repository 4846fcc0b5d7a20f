"""The k-sparse autoencoder."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from palinka.autoencoders.base import (
    Autoencoder,
    SparseOutput,
    validate_k,
)
from palinka.autoencoders.kernels import Weights, autoencode, keep_top_k
from palinka.errors import InputError


class KSparseAutoencoder(Autoencoder):
    """Keep the k largest of `ReLU(W x)` and read `x` back through the transpose of `W`.

    Values that tie with the k-th largest are all kept.

    Args:
        input_dim: Width of the activations.
        latent_dim: Number of latents; default `2 * input_dim`.
        k: Number of latents per row; default `input_dim // 2`.
        tied: Decode by the encoder's weights. Otherwise the decoder's own begin as a copy of the
            encoder's, or, for a transcoder, are drawn independently.
        encoder_bias: Add a bias, zero at the start, before the ReLU.
        decoder_bias: Add a bias, zero at the start, to the reconstruction, and subtract it from
            `x` before encoding, except in a transcoder.
        unit_norm: Give every latent's direction norm 1, at the start and throughout training.
        output_dim: Width of a transcoder's output, which cannot be tied.

    Raises:
        InputError: If a dimension is not a positive integer, `k` is not in 1 … `latent_dim`, or a
            transcoder is tied.

    Source:
        Makhzani & Frey (2013), k-sparse autoencoders, arXiv 1312.5663.
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int | None = None,
        k: int | None = None,
        tied: bool = True,
        encoder_bias: bool = False,
        decoder_bias: bool = False,
        unit_norm: bool = False,
        output_dim: int | None = None,
    ) -> None:
        super().__init__(input_dim, latent_dim, output_dim)
        if tied and self.is_transcoder:
            raise InputError(
                f"tied is true and output_dim is {output_dim}: a transcoder's decoder writes to"
                " another site than its encoder reads; set tied to false"
            )
        self.k = validate_k(k, self.input_dim, self.latent_dim)
        self.tied = tied
        self.unit_norm = unit_norm
        self.encoder = nn.Linear(self.input_dim, self.latent_dim, bias=encoder_bias)
        self.decoder_weight = (
            None if tied else nn.Parameter(torch.empty(self.latent_dim, self.output_dim))
        )
        self.decoder_bias = nn.Parameter(torch.zeros(self.output_dim)) if decoder_bias else None
        with torch.no_grad():
            self._draw(self.encoder.weight)
            if self.decoder_weight is not None and self.is_transcoder:
                self._draw(self.decoder_weight)
            elif self.decoder_weight is not None:
                self.decoder_weight.copy_(self.encoder.weight)
            if self.encoder.bias is not None:
                self.encoder.bias.zero_()

    @property
    def dictionary(self) -> Tensor:
        """Decoder directions, `(latent_dim, output_dim)`; not a copy."""
        return self.encoder.weight if self.decoder_weight is None else self.decoder_weight

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        self.check_width(x, self.input_dim, "activations")
        if self.decoder_bias is not None and not self.is_transcoder:
            x = x - self.decoder_bias
        return keep_top_k(torch.relu(self.encoder(x)), self.k)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents `(…, latent_dim)` to activations `(…, output_dim)`."""
        self.check_width(latents, self.latent_dim, "latents")
        return functional.linear(latents, self.dictionary.T, self.decoder_bias)

    def forward_sparse(self, x: Tensor) -> SparseOutput:
        """Encode and decode activations `(rows, input_dim)`, with sparse latents."""
        if type(self) is not KSparseAutoencoder:  # a subclass may compute something else
            return super().forward_sparse(x)
        self.check_width(x, self.input_dim, "activations")
        encoder, subtracts = self.encoder, not self.is_transcoder
        weights = Weights(
            encoder.weight, encoder.bias, self.decoder_weight, self.decoder_bias, subtracts
        )
        return SparseOutput(*autoencode(x, weights, self.k))

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return {
            **super().config(),
            "k": self.k,
            "tied": self.tied,
            "encoder_bias": self.encoder.bias is not None,
            "decoder_bias": self.decoder_bias is not None,
            "unit_norm": self.unit_norm,
        }

    def _draw(self, weight: Tensor) -> None:
        """Draw a weight uniformly in ±1/√width."""
        bound = 1.0 / math.sqrt(weight.shape[1])
        weight.uniform_(-bound, bound)
        if self.unit_norm:
            weight.div_(weight.norm(dim=1, keepdim=True))


_EPSILON = 1e-5


class LayerNormalizedAutoencoder(KSparseAutoencoder):
    """A k-sparse autoencoder of layer-normed `x`, `(x - mean) / (deviation + 1e-5)`.

    `encode` normalizes, and `decode_for` undoes it. `decode` and a transcoder give the normalized
    reconstruction: the one has no `x`, the other an output unrelated to the input's mean and
    deviation.

    Source:
        Gao et al. (2024), Scaling and evaluating sparse autoencoders, arXiv 2406.04093, as
        in its published autoencoders.
    """

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        self.check_width(x, self.input_dim, "activations")
        mean, deviation = _moments(x)
        return super().encode((x - mean) / (deviation + _EPSILON))

    def decode_for(self, latents: Tensor, x: Tensor) -> Tensor:
        """Latents `(…, latent_dim)` to a reconstruction with the mean and deviation of `x`."""
        if self.is_transcoder:
            return self.decode(latents)
        mean, deviation = _moments(x)
        return self.decode(latents) * deviation + mean


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, with Bessel's correction, of each row; `(…, 1)`."""
    deviation, mean = torch.std_mean(x, dim=-1, keepdim=True)
    return mean, deviation
