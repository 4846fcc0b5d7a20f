"""Centering and scaling of activations before they are encoded."""

import torch
from torch import Tensor
from torch.nn import Buffer

from palinka.autoencoders.base import FullPrecisionState
from palinka.errors import InputError


class InputScaling(FullPrecisionState):
    """`(x - mean) * scale` and its inverse; the identity until `set`.

    Args:
        input_dim: Width of the activations.
    """

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.mean = Buffer(torch.zeros(input_dim))
        self.scale = Buffer(torch.ones(()))

    @torch.no_grad()
    def set(self, mean: Tensor, scale: float) -> None:
        """Set a mean `(input_dim,)` and a positive scale."""
        if mean.shape != self.mean.shape:
            raise InputError(
                f"input statistics of width {tuple(mean.shape)} do not fit an autoencoder of"
                f" input_dim {len(self.mean)}: use data of the same site and model"
            )
        if not (0.0 < scale < float("inf")) or not bool(torch.isfinite(mean).all()):
            raise InputError(
                f"input statistics must be finite, with a positive scale, got scale {scale}:"
                " check the activations for NaN, Inf, or rows that are all zero"
            )
        self.mean.copy_(mean)
        self.scale.fill_(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Raw activations `(…, input_dim)` to the autoencoder's input."""
        return (x - self.mean) * self.scale

    def inverse(self, x: Tensor) -> Tensor:
        """Reconstructions `(…, input_dim)` to raw activations."""
        return x / self.scale + self.mean
