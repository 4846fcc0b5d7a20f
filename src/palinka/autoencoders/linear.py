"""Base classes of autoencoders with a linear encoder and decoder, and their kernels."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from palinka.autoencoders.base import Autoencoder, SparseOutput
from palinka.autoencoders.kernels.autoencode import dense_autograd
from palinka.autoencoders.kernels.loops import supports_numba
from palinka.autoencoders.kernels.sparse import Latents, Weights, sparse_autograd

# Largest share of kept latents for which gathering rows beats multiplying matrices, and least
# number of values for which either matters; measured in `docs/performance.md`.
SPARSE_DENSITY = 0.08
SPARSE_ELEMENTS = 1 << 20
# A guess, not measured: GPUs multiply matrices faster, so it lies well below SPARSE_DENSITY.
TRITON_DENSITY = 1 / 64
TRITON_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
# The first GPUs that multiply bfloat16.
TRITON_CAPABILITY = (8, 0)


class LinearAutoencoder(Autoencoder):
    """A linear encoder and decoder, tied (`decoder_weight` is None) or not."""

    keeps_top_k: bool = False
    """True of a class itself whose `encode` keeps the `k` largest of the positive values."""
    k: int
    encoder: nn.Linear
    decoder_weight: nn.Parameter | None
    decoder_bias: nn.Parameter | None
    subtract_decoder_bias: bool

    @torch.no_grad()
    def _add_parameters(
        self, draw: Callable[[Tensor], None], tied: bool, encoder_bias: bool, decoder_bias: bool
    ) -> None:
        """Draw weights; an untied decoder begins as the encoder's, except in a transcoder."""
        self.encoder = nn.Linear(self.input_dim, self.latent_dim, bias=encoder_bias)
        decoder = None if tied else nn.Parameter(torch.empty(self.latent_dim, self.output_dim))
        self.decoder_weight = decoder
        self.decoder_bias = nn.Parameter(torch.zeros(self.output_dim)) if decoder_bias else None
        draw(self.encoder.weight)
        if encoder_bias:
            self.encoder.bias.zero_()
        if decoder is not None and self.is_transcoder:
            draw(decoder)
        elif decoder is not None:
            decoder.copy_(self.encoder.weight)

    @property
    def dictionary(self) -> Tensor:
        """Decoder directions, `(latent_dim, output_dim)`; not a copy."""
        return self.encoder.weight if self.decoder_weight is None else self.decoder_weight

    def encoder_output(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to `(…, latent_dim)`, before any nonlinearity."""
        self.check_width(x, self.input_dim, "activations")
        if self.decoder_bias is not None and self.subtract_decoder_bias:
            x = x - self.decoder_bias
        output: Tensor = self.encoder(x)
        return output

    def decode(self, latents: Tensor) -> Tensor:
        """Latents `(…, latent_dim)` to activations `(…, output_dim)`."""
        self.check_width(latents, self.latent_dim, "latents")
        return functional.linear(latents, self.dictionary.T, self.decoder_bias)

    def forward_sparse(self, x: Tensor) -> SparseOutput:
        """Encode and decode activations `(rows, input_dim)`; sparse latents where cheaper."""
        if not vars(type(self)).get("keeps_top_k"):  # a subclass may compute something else
            return super().forward_sparse(x)
        self.check_width(x, self.input_dim, "activations")
        weight, bias = self.encoder.weight, self.encoder.bias
        decoder = self.decoder_weight, self.decoder_bias, self.subtract_decoder_bias
        return SparseOutput(*autoencode(x, Weights(weight, bias, *decoder), self.k))


class UntiedAutoencoder(LinearAutoencoder):
    """A linear encoder, and a decoder with weights and a bias of its own.

    The encoder's rows begin as random directions, uniform on the sphere, the decoder as a copy of
    it (for a transcoder, drawn independently in the same way), and all biases as zero.

    Args:
        subtract_decoder_bias: Subtract the decoder's bias before encoding; a transcoder never
            does.
        unit_norm: Give every latent's direction norm 1, at the start and throughout training.

    Attributes:
        encoder_bias: Whether the encoder has a bias.
        initial_norm: Norm of the decoder's rows at the start, without `unit_norm`.
    """

    decoder_weight: nn.Parameter
    decoder_bias: nn.Parameter
    encoder_bias: bool = True
    initial_norm: float = 1.0

    def __init__(
        self, input_dim: int, latent_dim: int | None = None, *, subtract_decoder_bias: bool = True,
        unit_norm: bool = True, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(input_dim, latent_dim, **settings)
        self.subtract_decoder_bias = subtract_decoder_bias and not self.is_transcoder
        self.unit_norm = unit_norm
        self._add_parameters(self._draw, False, self.encoder_bias, True)

    def _draw(self, weight: Tensor) -> None:
        norm = 1.0 if self.unit_norm else self.initial_norm
        weight.normal_()
        weight.mul_(norm / weight.norm(dim=1, keepdim=True))


def autoencode(x: Tensor, weights: Weights, k: int) -> tuple[Tensor, Latents]:
    """Keep the `k` largest of `ReLU(W x + b)` of each row, ties included, and decode.

    From `x`, `(rows, inputs)`, to the reconstruction, `(rows, outputs)`, and the latents,
    `(rows, latents)`, as `SparseLatents` where that is faster. Under autocast the matrix products
    are done in its dtype. Differentiable once.
    """
    if not use_sparse(x, weights.encoder, k):
        return dense_autograd(x, weights, k)
    if not supports_triton(weights.encoder):
        return sparse_autograd(x, weights, k)
    # Triton comes only with torch for GPUs.
    from palinka.autoencoders.kernels.triton import triton_autograd

    return triton_autograd(x, weights, k)


def use_sparse(x: Tensor, weight: Tensor, k: int) -> bool:
    """Choose sparse kernels for rows `x` that keep `k` of `len(weight)` latents."""
    triton = supports_triton(weight)
    if len(x) * len(weight) < SPARSE_ELEMENTS or not (triton or supports_numba(weight)):
        return False
    return k <= (TRITON_DENSITY if triton else SPARSE_DENSITY) * len(weight)


def supports_triton(tensor: Tensor) -> bool:
    """Check for a plain tensor on a GPU, and for the flag that enables Triton kernels."""
    return (
        tensor.is_cuda
        # Off by default: the kernels have only run in Triton's interpreter.
        and os.environ.get("PALINKA_TRITON") == "1"
        and tensor.dtype in TRITON_DTYPES
        and type(tensor) in (Tensor, nn.Parameter)
        and find_spec("triton") is not None
        and torch.cuda.get_device_capability(tensor.device) >= TRITON_CAPABILITY
    )
