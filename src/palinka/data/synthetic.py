"""Synthetic data with a known dictionary."""

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional

from palinka.errors import InputError

LEAST_OWN_VARIANCE = 0.01  # of the normal variable behind each feature
DIRECTION_STEPS, DIRECTION_RATE = 100, 3e-4  # of Adam


class SyntheticBatch(NamedTuple):
    """Rows of data, and the strengths of their features, in float32."""

    x: Tensor  # (rows, width)
    latents: Tensor  # (rows, features), zero where a feature is inactive


class Firing(NamedTuple):
    """Zipf's law of the frequencies, from `most` of the first feature to `least` of the last."""

    most: float
    least: float
    exponent: float = 0.5


class Magnitudes(NamedTuple):
    """Strengths `relu(N(mean, deviation²))`, with values of each feature.

    Means are linear from `first` to `last`, deviations `|N(deviation, deviation_sd²)|`.
    """

    first: float = 5.0
    last: float = 4.0
    deviation: float = 0.5
    deviation_sd: float = 0.5


class Hierarchy(NamedTuple):
    """Trees of features, of which a child is active only where its parent is."""

    roots: int
    branching: int  # children of each parent
    depth: int  # levels below the roots
    exclusive: bool = True  # at most one child of a parent is active, drawn from those that would


class Correlation(NamedTuple):
    """Correlation of the normal variables behind the features, `F Fᵀ` off its diagonal.

    `F`, `(features, rank)`, is drawn from `N(0, scale²)`.
    """

    rank: int
    scale: float


@dataclass(frozen=True)
class StructuredData:
    """Data whose features have unequal frequencies, correlations and parents.

    A row is the sum of the active features' directions, each times a strength, with a bias and
    noise. Features are numbered from the most frequent; those of the trees come first, all roots,
    then all their children, and so on.

    Attributes:
        features: Number of directions.
        width: Number of dimensions.
        firing: Frequencies. Children are drawn more often than that to make up for what the
            hierarchy takes; of exclusive siblings that is an approximation, and too little where
            their frequencies add up to nearly their parent's or more.
        magnitudes: Strengths of active features.
        hierarchy: Trees of features; None for none.
        correlation: Correlation of activity; None for none.
        noise: Standard deviation of the normal noise on each element.
        bias: Norm of the bias, whose direction is random.
        seed: Draws all that is fixed; a sample has a seed of its own.

    Source:
        The rules of `sae_lens.synthetic` and its preset SynthSAEBench-16k.

    Example:
        >>> from palinka.data import StructuredData
        >>> batch = StructuredData.small().sample(8, seed=1)
        >>> tuple(batch.x.shape), tuple(batch.latents.shape)
        ((8, 64), (8, 512))
    """

    features: int
    width: int
    firing: Firing
    magnitudes: Magnitudes = field(default_factory=Magnitudes)
    hierarchy: Hierarchy | None = None
    correlation: Correlation | None = None
    noise: float = 0.0
    bias: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        most, least, exponent = self.firing
        if not (0 < least <= most <= 1 and exponent > 0):
            expected = "frequencies with 0 < least <= most <= 1 and an exponent above 0"
            raise InputError(f"firing must be {expected}, got {self.firing}")
        if self.hierarchy and self.hierarchy.roots > self.features:
            raise InputError(f"{self.hierarchy.roots} roots exceed {self.features} features")

    @classmethod
    def small(cls, seed: int = 0) -> Self:
        """512 features in 64 dimensions, 336 of them in 16 trees, for minutes on a CPU."""
        trees, normal = Hierarchy(16, 4, 2), Correlation(25, 0.1)
        return cls(512, 64, Firing(0.4, 4e-3), hierarchy=trees, correlation=normal, seed=seed)

    @classmethod
    def synthsaebench_16k(cls, seed: int = 0) -> Self:
        """SynthSAEBench-16k: 16,384 features in 768 dimensions, 10,880 of them in 128 trees."""
        trees, normal = Hierarchy(128, 4, 3), Correlation(25, 0.1)
        return cls(16_384, 768, Firing(0.4, 5e-4), hierarchy=trees, correlation=normal, seed=seed)

    @cached_property
    def directions(self) -> Tensor:
        """Direction of each feature, `(features, width)`, float32, rows of norm 1."""
        drawn = torch.randn(self.features, self.width, generator=_generator(self.seed, 0, 0))
        return nearly_orthogonal(drawn)

    @cached_property
    def offset(self) -> Tensor:
        """The bias, `(width,)`."""
        drawn = torch.randn(self.width, generator=_generator(self.seed, 0, 1))
        return self.bias * functional.normalize(drawn, dim=0)

    @cached_property
    def frequencies(self) -> NDArray[np.float64]:
        """Frequency that each feature should have, `(features,)`; children may fall short."""
        most, least, exponent = self.firing
        power = np.arange(1, self.features + 1) ** -exponent
        span = 1.0 - power[-1]  # 0 of a single feature
        share = (power - power[-1]) / span if span else np.ones(1)
        return np.asarray(least + (most - least) * share)

    @cached_property
    def parents(self) -> NDArray[np.int64]:
        """Parent of each feature, `(features,)`; -1 for none."""
        parents = np.full(self.features, -1)
        for start, children in self._levels:
            number = np.arange(children.stop - children.start)
            parents[children] = start + number // self._branching
        return parents

    @property
    def _branching(self) -> int:
        return self.hierarchy.branching if self.hierarchy else 1

    @cached_property
    def _levels(self) -> list[tuple[int, slice]]:
        """First parent and children of each level."""
        if self.hierarchy is None:
            return []
        roots, branching, depth, _ = self.hierarchy
        levels, start, size = [], 0, roots
        for _ in range(depth):
            stop = min(self.features, start + size + size * branching)
            levels.append((start, slice(start + size, stop)))
            start, size = start + size, size * branching
        return [(first, children) for first, children in levels if children.start < children.stop]

    @cached_property
    def drawn_frequencies(self) -> NDArray[np.float64]:
        """Probability that each feature is active before the hierarchy, `(features,)`."""
        p, parents = self.frequencies, self.parents
        own = np.flatnonzero(parents >= 0)
        above, factor = p[parents[own]], np.ones(self.features)
        factor[own] = 1.0 / above
        if self.hierarchy and self.hierarchy.exclusive:
            together = np.bincount(parents[own], p[own], self.features)[parents[own]]
            factor[own] *= 1.0 + np.maximum(0.0, together - p[own]) / above
        drawn = p * factor
        if clamped := int(((drawn >= 1.0) & (p < 1.0)).sum()):
            fault = f"{clamped} features cannot be so frequent under their parents"
            warnings.warn(f"{fault}; lower the frequencies", stacklevel=2)
        return np.minimum(drawn, 1.0)

    @cached_property
    def _factor(self) -> tuple[Tensor, Tensor]:
        """`F`, `(features, rank)`, and the deviation that is each feature's own, `(features,)`."""
        rank, scale = self.correlation or Correlation(1, 0.0)
        factor = scale * torch.randn(self.features, rank, generator=_generator(self.seed, 0, 2))
        shared = factor.square().sum(dim=1)
        too_much = shared > 1.0 - LEAST_OWN_VARIANCE
        factor[too_much] *= ((1.0 - LEAST_OWN_VARIANCE) / shared[too_much]).sqrt()[:, None]
        return factor, (1.0 - factor.square().sum(dim=1)).sqrt()

    @cached_property
    def _thresholds(self) -> Tensor:
        drawn = torch.from_numpy(self.drawn_frequencies)
        thresholds: Tensor = -torch.special.ndtri(drawn).float()
        return thresholds

    @cached_property
    def _strengths(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each feature's strength, `(features,)`."""
        first, last, deviation, sd = self.magnitudes
        drawn = torch.randn(self.features, generator=_generator(self.seed, 0, 3))
        return torch.linspace(first, last, self.features), (deviation + sd * drawn).abs()

    @torch.no_grad()
    def sample(self, rows: int, seed: int) -> SyntheticBatch:
        """Draw `rows` rows, the same for the same seed."""
        generator = _generator(self.seed, 1, seed)
        factor, own = self._factor
        normal = own * torch.randn(rows, self.features, generator=generator)
        if self.correlation is not None:
            normal += torch.randn(rows, factor.shape[1], generator=generator) @ factor.T
        row, feature = (normal > self._thresholds).nonzero(as_tuple=True)
        mean, deviation = (each[feature] for each in self._strengths)
        drawn = mean + deviation * torch.randn(len(feature), generator=generator)
        latents = torch.zeros(rows, self.features)
        latents[row, feature] = drawn.relu()
        self._prune(latents, generator)
        x = latents @ self.directions + self.offset
        if self.noise > 0:
            x = x + self.noise * torch.randn(x.shape, generator=generator)
        return SyntheticBatch(x, latents)

    def _prune(self, latents: Tensor, generator: Generator) -> None:
        """Switch off, level by level, children without their parent, and all siblings but one."""
        size = self._branching
        for start, children in self._levels:
            own = latents[:, children]
            parents = -(-own.shape[1] // size)
            above = (latents[:, start : start + parents] > 0).repeat_interleave(size, dim=1)
            own *= above[:, : own.shape[1]]
            if self.hierarchy and self.hierarchy.exclusive:
                # Drawn numbers of the active ones; a last group of fewer is filled up.
                drawn = (own > 0) * (1.0 - torch.rand(own.shape, generator=generator))
                groups = functional.pad(drawn, (0, parents * size - own.shape[1]))
                groups = groups.view(len(own), parents, size)
                wins = (groups == groups.amax(dim=2, keepdim=True)).view(len(own), -1)
                own *= wins[:, : own.shape[1]]


def nearly_orthogonal(directions: Tensor) -> Tensor:
    """Move directions apart, `(features, width)`, by Adam on the squares of their cosines.

    Squared deviations of squared norms from 1, each times the number of features, keep them long.

    Source:
        `sae_lens.synthetic.orthogonalize_embeddings`.
    """
    moved = functional.normalize(directions)
    adam = torch.optim.Adam([moved], DIRECTION_RATE)
    for _ in range(DIRECTION_STEPS):
        norms = moved.square().sum(dim=1, keepdim=True)
        # All pairs, without their matrix of features times features.
        pull = moved @ (moved.T @ moved) - norms * moved
        moved.grad = 4.0 * (pull + len(moved) * (norms - 1.0) * moved)
        adam.step()
    return functional.normalize(moved.detach())


def _generator(*seeds: int) -> Generator:
    state = np.random.SeedSequence([len(seeds), *seeds]).generate_state(1, np.uint64)
    return Generator().manual_seed(int(state[0] >> 1))


_CHUNK = 1 << 22  # cosines held in memory at a time


@torch.no_grad()
def mean_max_cosine(dictionary: Tensor, directions: Tensor) -> float:
    """Mean over true directions of the highest cosine with any latent's, from -1 to 1.

    The directions are `(features, width)`, those of the dictionary `(latents, width)`; a row of
    zeros has cosine 0 with everything.

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
