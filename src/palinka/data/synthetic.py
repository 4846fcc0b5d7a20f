"""Synthetic data with a known dictionary."""

import math
from collections.abc import Sequence
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


@dataclass(frozen=True, eq=False)
class CorrelatedData(SyntheticData):
    """Data in which a given structure of correlation makes features co-occur.

    Behind every row stands a vector of normal variables with the given correlations, and a
    feature is active where its own is among the highest. Each is active as often as it would be
    without them.

    Attributes:
        correlation: Of the normal variables, a symmetric `(features, features)` matrix without
            negative eigenvalues and with ones on the diagonal; see `grouped_correlation`.

    Raises:
        InputError: If it is no such matrix, or as `SyntheticData` does.

    Source:
        Emrich & Piedmonte (1991), A method for generating high-dimensional multivariate binary
        variates.
    """

    correlation: Sequence[Sequence[float]] | Tensor = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self._matrix
        if (
            given.shape != (self.features, self.features)
            or not torch.allclose(given, given.T)
            or not torch.allclose(given.diagonal(), torch.ones(self.features, dtype=given.dtype))
        ):
            raise InputError(
                f"correlation must be a symmetric matrix of {self.features} by {self.features} with"
                f" ones on the diagonal, got the shape {tuple(given.shape)}"
            )
        lowest = float(torch.linalg.eigvalsh(given)[0])
        if lowest < -1e-6:
            raise InputError(
                f"no variables have this correlation: its lowest eigenvalue is {lowest:.3g}, and"
                " none may be negative; make the correlations weaker"
            )

    @property
    def _matrix(self) -> Tensor:
        return torch.as_tensor(self.correlation, dtype=torch.float64)

    @cached_property
    def _root(self) -> Tensor:
        """What independent normal variables are multiplied with, `(features, features)`."""
        values, vectors = torch.linalg.eigh(self._matrix)
        root: Tensor = vectors * values.clamp(min=0).sqrt()
        return root.T.float()

    def _active(self, rows: int, generator: Generator) -> Tensor:
        normal = torch.randn(rows, self.features, generator=generator) @ self._root
        active: Tensor = normal < torch.special.ndtri(torch.tensor(self.active / self.features))
        return active


def grouped_correlation(features: int, group_size: int, correlation: float) -> Tensor:
    """The same correlation between any two features of a group, none between groups.

    Args:
        features: How many there are.
        group_size: How many consecutive features make up a group; the last may have fewer.
        correlation: From 0 to 1.

    Returns:
        `(features, features)`, float64.
    """
    group = torch.arange(features) // group_size
    together = (group[:, None] == group).double()
    return correlation * together + (1.0 - correlation) * torch.eye(features, dtype=torch.float64)


@dataclass(frozen=True)
class HierarchicalData(SyntheticData):
    """Data in which a child may be active only where its parent is.

    Features without a parent are active with one probability, by themselves; it is what makes
    `active` the mean over all features.

    Attributes:
        parents: The index of each feature's parent, which must come before it; None for those
            that have none. See `families`.
        child_probability: How often a child is active where its parent is.

    Raises:
        InputError: If a parent does not come before its child, so few features without a parent
            cannot be active so often, or as `SyntheticData` does.

    Source:
        Chanin et al. (2024), A is for absorption, arXiv 2409.14507; Bussmann et al. (2025),
        Matryoshka sparse autoencoders, arXiv 2503.17547.
    """

    parents: Sequence[int | None] = ()
    child_probability: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.parents) != self.features:
            raise InputError(
                f"parents must have an entry for each of the {self.features} features, got"
                f" {len(self.parents)}"
            )
        for child, parent in enumerate(self.parents):
            if parent is not None and not 0 <= parent < child:
                raise InputError(
                    f"the parent of feature {child} must be a feature before it, got {parent}"
                )
        if not 0 < self.child_probability <= 1:
            raise InputError(
                f"child_probability must be more than 0 and at most 1, got"
                f" {self.child_probability!r}"
            )
        if self._probabilities.max() > 1:
            raise InputError(
                f"features without a parent would be active with probability"
                f" {float(self._probabilities.max()):.3g} for {self.active} to be active: lower"
                " active, or have more of them"
            )

    @cached_property
    def _probabilities(self) -> Tensor:
        """How often each is active where its parent is, if it has one, `(features,)`."""
        share: list[float] = []
        for parent in self.parents:
            share.append(1.0 if parent is None else share[parent] * self.child_probability)
        root = self.active / sum(share)
        return torch.tensor(
            [root if parent is None else self.child_probability for parent in self.parents]
        )

    def _active(self, rows: int, generator: Generator) -> Tensor:
        active = torch.rand(rows, self.features, generator=generator) < self._probabilities
        for child, parent in enumerate(self.parents):
            if parent is not None:
                active[:, child] &= active[:, parent]
        return active


def families(features: int, children: int) -> list[int | None]:
    """One parent followed by its children, again and again: the `parents` of `HierarchicalData`.

    Args:
        features: How many there are; the last family may have fewer.
        children: How many each parent has.
    """
    size = children + 1
    return [None if i % size == 0 else i - i % size for i in range(features)]


# Cosines held in memory at a time.
_BLOCK = 1 << 22


@torch.no_grad()
def mean_max_cosine(dictionary: Tensor, directions: Tensor) -> float:
    """The mean over true directions of the highest cosine with any latent's.

    Args:
        dictionary: What each latent writes, `(latents, width)`; a latent that writes nothing has
            cosine 0 with everything.
        directions: The true ones, `(features, width)`.

    Returns:
        From -1 to 1; 1 where each direction is some latent's.

    Raises:
        InputError: If one of them is no matrix or has no rows, or they differ in width.

    Source:
        Sharkey et al. (2022), Taking features out of superposition with sparse autoencoders.
    """
    if dictionary.ndim != 2 or directions.ndim != 2 or dictionary.shape[1] != directions.shape[1]:
        raise InputError(
            "a dictionary and directions are (latents, width) and (features, width), got"
            f" {tuple(dictionary.shape)} and {tuple(directions.shape)}"
        )
    if not len(dictionary) or not len(directions):
        raise InputError("a dictionary and directions to compare must each have at least one row")
    dtype = torch.promote_types(dictionary.dtype, torch.float32)
    true = _normalized(directions.to(dictionary.device, dtype))
    best = true.new_full((len(true),), -1.0)
    size = max(1, _BLOCK // len(true))
    for start in range(0, len(dictionary), size):
        block = _normalized(dictionary[start : start + size].to(dtype))
        best = torch.maximum(best, (true @ block.T).amax(dim=1))
    return float(best.double().mean())


def _normalized(rows: Tensor) -> Tensor:
    norm: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / norm.where(norm > 0, 1.0)
