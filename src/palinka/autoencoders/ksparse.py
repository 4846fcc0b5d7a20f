"""The k-sparse autoencoder."""

import math
from typing import Any

import torch
from torch import Tensor

from palinka.autoencoders.base import validate_k
from palinka.autoencoders.kernels.topk import keep_top_k
from palinka.autoencoders.linear import LinearAutoencoder
from palinka.errors import InputError


class KSparseAutoencoder(LinearAutoencoder):
    """Keep the k largest of `ReLU(W x)` and read `x` back through the transpose of `W`.

    Values that tie with the k-th largest are all kept.

    Args:
        k: Number of latents per row; default `input_dim // 2`.
        tied: Decode by the encoder's weights. Otherwise the decoder's own begin as a copy of the
            encoder's, or, for a transcoder, which cannot be tied, are drawn independently.
        encoder_bias: Add a bias, zero at the start, before the ReLU.
        decoder_bias: Add a bias, zero at the start, to the reconstruction, and subtract it from
            `x` before encoding, except in a transcoder.
        unit_norm: Give every latent's direction norm 1, at the start and throughout training.

    Source:
        Makhzani & Frey (2013), k-sparse autoencoders, arXiv 1312.5663.
    """

    keeps_top_k = True

    def __init__(
        self, input_dim: int, latent_dim: int | None = None, k: int | None = None,
        tied: bool = True, encoder_bias: bool = False, decoder_bias: bool = False,
        unit_norm: bool = False, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(input_dim, latent_dim, **settings)
        if tied and self.is_transcoder:
            raise InputError("tied is true: a transcoder cannot be tied; set tied to false")
        self.k = validate_k(k, self.input_dim, self.latent_dim)
        self.tied, self.encoder_bias, self.unit_norm = tied, encoder_bias, unit_norm
        self.subtract_decoder_bias = not self.is_transcoder
        self._add_parameters(self._draw, tied, encoder_bias, decoder_bias)

    def _draw(self, weight: Tensor) -> None:
        bound = 1.0 / math.sqrt(weight.shape[1])
        weight.uniform_(-bound, bound)
        if self.unit_norm:
            weight.div_(weight.norm(dim=1, keepdim=True))

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        return keep_top_k(self.encoder_output(x).relu(), self.k)

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return {**super().config(), "decoder_bias": self.decoder_bias is not None}


class LayerNormalizedAutoencoder(KSparseAutoencoder):
    """A k-sparse autoencoder of layer-normed `x`, `(x - mean) / (deviation + 1e-5)`.

    `encode` normalizes, and `decode_for` undoes it. `decode` and a transcoder give the normalized
    reconstruction: the one has no `x`, the other an output unrelated to the input's mean and
    deviation.

    Source:
        Gao et al. (2024), arXiv 2406.04093, as in its published autoencoders.
    """

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        self.check_width(x, self.input_dim, "activations")
        deviation, mean = torch.std_mean(x, dim=-1, keepdim=True)
        return super().encode((x - mean) / (deviation + 1e-5))

    def decode_for(self, latents: Tensor, x: Tensor) -> Tensor:
        """Latents `(…, latent_dim)` to a reconstruction with the mean and deviation of `x`."""
        if self.is_transcoder:
            return self.decode(latents)
        deviation, mean = torch.std_mean(x, dim=-1, keepdim=True)
        return self.decode(latents) * deviation + mean
