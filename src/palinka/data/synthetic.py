"""Synthetic data with a known dictionary."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from palinka.errors import InputError

Amplitude = Literal["constant", "uniform", "half_normal", "exponential"]


class SyntheticBatch(NamedTuple):
    """Rows of data, and the strengths of their features."""

    x: Tensor
    """`(rows, width)`, float32."""
    latents: Tensor
    """Strength of each active feature, `(rows, features)`, float32, zero where it is inactive."""


@dataclass(frozen=True)
class SyntheticData:
    """Data with independent features, all active with the same probability.

    A row is the sum of the active features' directions, which are random and of norm 1, each
    times an amplitude, and noise.

    Attributes:
        features: Number of directions.
        width: Number of dimensions.
        active: Mean number of active features.
        amplitude: Distribution of an active feature's strength, with mean 1: constant, uniform
            from 0.5 to 1.5, the absolute value of a normal variable, or exponential.
        noise: Standard deviation of the normal noise on each element.
        seed: Draws the directions; a sample has a seed of its own.

    Source:
        Sharkey et al. (2022), Taking features out of superposition with sparse autoencoders.
    """

    features: int
    width: int
    active: float
    amplitude: Amplitude = "uniform"
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.active <= self.features:
            raise InputError(f"active must be in (0, {self.features}], got {self.active!r}")
        if self.amplitude not in get_args(Amplitude):
            names = ", ".join(get_args(Amplitude))
            raise InputError(f"amplitude must be one of {names}, got {self.amplitude!r}")

    @cached_property
    def directions(self) -> Tensor:
        """Direction of each feature, `(features, width)`, float32, rows of norm 1."""
        size = (self.features, self.width)
        directions = torch.randn(size, generator=_generator(self.seed), dtype=torch.float64)
        return functional.normalize(directions, eps=0.0).float()

    def sample(self, rows: int, seed: int) -> SyntheticBatch:
        """Draw `rows` rows, the same for the same seed."""
        generator = _generator(self.seed, seed)
        active = self._active(rows, generator)
        latents = self._amplitudes((rows, self.features), generator) * active
        x = latents @ self.directions
        if self.noise > 0:
            x = x + self.noise * torch.randn(x.shape, generator=generator)
        return SyntheticBatch(x, latents)

    def _active(self, rows: int, generator: Generator) -> Tensor:
        """Choose the features of each row, `(rows, features)`; a subclass may let them depend."""
        drawn = torch.rand((rows, self.features), generator=generator)
        return drawn < self.active / self.features

    def _amplitudes(self, shape: tuple[int, int], generator: Generator) -> Tensor:
        if self.amplitude == "constant":
            return torch.ones(shape)
        if self.amplitude == "uniform":
            return 0.5 + torch.rand(shape, generator=generator)
        if self.amplitude == "half_normal":
            return math.sqrt(math.pi / 2) * torch.randn(shape, generator=generator).abs()
        return torch.empty(shape).exponential_(generator=generator)


def _generator(*seeds: int) -> Generator:
    state = np.random.SeedSequence([len(seeds), *seeds]).generate_state(1, np.uint64)
    return Generator().manual_seed(int(state[0] >> 1))


_CHUNK = 1 << 22  # cosines held in memory at a time


@torch.no_grad()
def mean_max_cosine(dictionary: Tensor, directions: Tensor) -> float:
    """Mean over true directions of the highest cosine with any latent's, from -1 to 1.

    Args:
        dictionary: Decoder directions, `(latents, width)`; a zero row has cosine 0 with everything.
        directions: The true ones, `(features, width)`.

    Source:
        Sharkey et al. (2022), Taking features out of superposition with sparse autoencoders.
    """
    dtype = torch.promote_types(dictionary.dtype, torch.float32)
    tiny = torch.finfo(dtype).tiny
    true = functional.normalize(directions.to(dictionary.device, dtype), eps=tiny)
    best = true.new_full((len(true),), -1.0)
    for chunk in torch.split(dictionary, max(1, _CHUNK // len(true))):
        cosines = true @ functional.normalize(chunk.to(dtype), eps=tiny).T
        best = torch.maximum(best, cosines.amax(dim=1))
    return float(best.double().mean())
