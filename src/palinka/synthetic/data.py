"""Sparse combinations of known directions, each feature active by itself."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Generator, Tensor

from palinka.errors import InputError

Amplitude = Literal["constant", "uniform", "half_normal", "exponential"]


class SyntheticBatch(NamedTuple):
    """Rows of data, and what they were made of."""

    x: Tensor
    """`(rows, width)`, float32."""
    latents: Tensor
    """How strongly each feature is active, `(rows, features)`, float32, zero where it is not."""


@dataclass(frozen=True)
class SyntheticData:
    """Data in which every feature is active with the same probability, whatever the others do.

    A row is the sum of the active features' directions, which are random and of norm 1, each
    times an amplitude, and noise.

    Attributes:
        features: How many directions there are.
        width: How many dimensions they are in.
        active: How many features are active on average.
        amplitude: How strong an active feature is; all have mean 1: exactly that, uniform from
            0.5 to 1.5, the absolute value of a normal variable, or exponential.
        noise: Standard deviation of the normal noise on each element.
        seed: Draws the directions; a sample has a seed of its own.

    Raises:
        InputError: If a number is out of range, or the amplitude is another.

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
        for name in ("features", "width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be an integer of at least 1, got {value!r}")
        if not 0 < self.active <= self.features:
            raise InputError(
                f"active must be more than 0 and at most the {self.features} features, got"
                f" {self.active!r}"
            )
        if self.amplitude not in get_args(Amplitude):
            raise InputError(
                f"amplitude must be one of {', '.join(get_args(Amplitude))}, got {self.amplitude!r}"
            )
        if not 0 <= self.noise < math.inf:
            raise InputError(f"noise must be at least 0, got {self.noise!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed must be an integer of at least 0, got {self.seed!r}")

    @cached_property
    def directions(self) -> Tensor:
        """What each feature writes, `(features, width)`, float32, rows of norm 1."""
        generator = _generator(self.seed)
        directions = torch.randn(
            self.features, self.width, generator=generator, dtype=torch.float64
        )
        norm: Tensor = directions.norm(dim=1, keepdim=True)
        return (directions / norm).float()

    def sample(self, rows: int, seed: int) -> SyntheticBatch:
        """Draw rows, the same for the same seed.

        Args:
            rows: How many.
            seed: Of this sample, at least 0.

        Raises:
            InputError: If there are no rows, or the seed is negative.
        """
        if rows < 1 or seed < 0:
            raise InputError(
                f"a sample has at least 1 row and a seed of at least 0, got {rows} rows and seed"
                f" {seed}"
            )
        generator = _generator(self.seed, seed)
        active = self._active(rows, generator)
        latents = self._amplitudes(rows, generator) * active
        x = latents @ self.directions
        if self.noise > 0:
            x = x + self.noise * torch.randn(x.shape, generator=generator)
        return SyntheticBatch(x, latents)

    def _active(self, rows: int, generator: Generator) -> Tensor:
        """Which features are active in which row, `(rows, features)`, bool."""
        draws = torch.rand(rows, self.features, generator=generator)
        return draws < self.active / self.features

    def _amplitudes(self, rows: int, generator: Generator) -> Tensor:
        shape = (rows, self.features)
        if self.amplitude == "constant":
            return torch.ones(shape)
        if self.amplitude == "uniform":
            return 0.5 + torch.rand(shape, generator=generator)
        if self.amplitude == "half_normal":
            return math.sqrt(math.pi / 2) * torch.randn(shape, generator=generator).abs()
        return torch.empty(shape).exponential_(generator=generator)


def _generator(*seeds: int) -> Generator:
    """Streams of different seeds have nothing to do with each other."""
    state = np.random.SeedSequence([len(seeds), *seeds]).generate_state(1, np.uint64)
    return Generator().manual_seed(int(state[0] >> 1))
