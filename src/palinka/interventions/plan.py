"""Interventions as data: where a run of the model is changed, and into what."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from palinka.errors import InputError
from palinka.language_models.edits import EncodesAndDecodes

Over = Literal["stimuli", "template", "text"]


@dataclass(frozen=True)
class Value:
    """Base class of what takes the place of vectors: a function of them, and of a source.

    `needs` names the source: the vectors of another run at the same positions (`run`), a
    `summary` of the reference (`reference`), vectors of other prompts of the reference
    (`resample`), standard normal draws (`noise`), what the block was given (`block`), or None.
    Draws depend on the seed, the prompt and the repeat alone, and are the same in all cells.
    """

    needs: ClassVar[Literal["run", "reference", "resample", "noise", "block"] | None] = None
    repeats = 1  # runs of each prompt, over which its outcomes are averaged

    def __call__(self, h: Tensor, source: Tensor | None = None) -> Tensor:
        """New vectors for `h`, `(vectors, width)`, with a source for each where it needs one."""
        new: Tensor = self._new(h, source)
        return new

    def _new(self, h: Tensor, source: Any) -> Any:
        return source


@dataclass(frozen=True)
class Zero(Value):
    """h' = 0."""

    def _new(self, h: Tensor, source: Any) -> Any:
        return torch.zeros_like(h)


@dataclass(frozen=True)
class Scale(Value):
    """h' = factor * h."""

    factor: float

    def _new(self, h: Tensor, source: Any) -> Any:
        return self.factor * h


@dataclass(frozen=True)
class ScaleContribution(Value):
    """h' = x + factor * (h - x) at `blocks.{i}.resid`, with x the block's input; 0 skips it."""

    factor: float
    needs = "block"

    def _new(self, h: Tensor, source: Any) -> Any:
        return source + self.factor * (h - source)


@dataclass(frozen=True)
class Patch(Value):
    """h' = h of another run at the same position; `paired` is the one that is not the base.

    Others are `clean`, `corrupted`, and those whose states `run` is given.
    """

    run: str = "paired"
    needs = "run"


@dataclass(frozen=True)
class Resample(Value):
    """h' = h of another prompt of the reference, with the same role, or position and length."""

    repeats: int = 10
    seed: int = 0
    needs = "resample"


@dataclass(frozen=True)
class Noise(Value):
    """h' = h + scale * eps, eps standard normal; ROME's scale is 3 standard deviations of h."""

    scale: float
    repeats: int = 10
    seed: int = 0
    needs = "noise"

    def _new(self, h: Tensor, source: Any) -> Any:
        return h + self.scale * source


@dataclass(frozen=True)
class TopToMedian(Value):
    """The largest `percent` of a token's values become the token's median, the lower of two."""

    percent: float

    def _new(self, h: Tensor, source: Any) -> Any:
        most = h.topk(round(h.shape[-1] * self.percent / 100), dim=-1).indices
        return h.scatter(-1, most, h.median(-1, keepdim=True).values.expand(most.shape))


@dataclass(frozen=True)
class FromReference(Value):
    """Value that depends on a summary of the reference's vectors.

    The vectors are those at the same role or position over all prompts (`stimuli`) or those of
    the prompt's template, or else those of the prompt's own tokens (`text`). Where the positions
    are `all`, they are those of all tokens but the first, whose norm is an outlier.
    """

    over: Over = field(default="stimuli", kw_only=True)
    needs = "reference"
    pooled: ClassVar[bool] = False  # over all tokens, whatever the positions are
    skip: ClassVar[int] = 1  # tokens of a text that are left out

    def _new(self, h: Tensor, source: Any) -> Any:
        return source.expand_as(h)

    def summary(self, vectors: Tensor) -> Tensor:
        """Summary of vectors of the reference, `(vectors, width)`; by default their mean."""
        return vectors.mean(0)


@dataclass(frozen=True)
class Mean(FromReference):
    """h' = mean over the reference, per dimension."""


@dataclass(frozen=True)
class ScalarMean(FromReference):
    """h' = one number, the mean over tokens and dimensions; by default those of the prompt."""

    over: Over = field(default="text", kw_only=True)
    skip = 0

    def summary(self, vectors: Tensor) -> Tensor:
        """Mean, `(1,)`."""
        return vectors.mean().reshape(1)


@dataclass(frozen=True)
class Median(FromReference):
    """h' = median over the reference, per dimension, the lower of two."""

    def summary(self, vectors: Tensor) -> Tensor:
        """Median, `(width,)`."""
        return vectors.median(0).values


class OfTensors(FromReference):
    """Base class of values with tensors: each equals itself alone."""

    __eq__, __hash__ = object.__eq__, object.__hash__


@dataclass(frozen=True, eq=False)
class ProjectOut(OfTensors):
    """h' = h - (h - mu) W (A^T W)^-1 A^T, the projection out of a subspace, along it.

    Attributes:
        patterns: A, `(width, rank)`: what the subspace writes; need not be orthonormal.
        filters: W, `(width, rank)`: what is read; default A, which projects orthogonally.
        centered: mu is the mean over the reference, so that the subspace is frozen there; else 0.
    """

    patterns: Tensor
    filters: Tensor | None = None
    centered: bool = True

    def _new(self, h: Tensor, source: Any) -> Any:
        patterns = self.patterns.to(h)
        filters = patterns if self.filters is None else self.filters.to(h)
        written = torch.linalg.solve(patterns.mT @ filters, patterns.mT)
        mean = source if self.centered else 0.0
        return h - (h - mean) @ filters @ written


@dataclass(frozen=True, eq=False)
class SetAlong(OfTensors):
    """h' = h + (value - u.h) u, with u the direction at norm 1.

    Attributes:
        direction: `(width,)`.
        value: What u.h becomes, in its own unit, or in standard deviations from its mean over the
            reference if `standardized`.
    """

    direction: Tensor
    value: float
    standardized: bool = False

    def _new(self, h: Tensor, source: Any) -> Any:
        unit = _unit(self.direction, h)
        value = source[:, :1] + self.value * source[:, 1:] if self.standardized else self.value
        return h + (value - (h @ unit)[:, None]) * unit

    def summary(self, vectors: Tensor) -> Tensor:
        """Mean and standard deviation of u.h, `(2,)`."""
        along = vectors @ _unit(self.direction, vectors)
        return torch.stack((along.mean(), along.std()))


@dataclass(frozen=True, eq=False)
class Steer(OfTensors):
    """h' = h + alpha * s * u, with s the median norm over the reference and u at norm 1.

    Attributes:
        direction: `(width,)`.
        alpha: Strength in median norms.
    """

    direction: Tensor
    alpha: float
    pooled = True

    def _new(self, h: Tensor, source: Any) -> Any:
        return h + self.alpha * source * _unit(self.direction, h)

    def summary(self, vectors: Tensor) -> Tensor:
        """Median of the norms, `(1,)`."""
        return vectors.square().sum(1).sqrt().median().reshape(1)


def _unit(direction: Tensor, like: Tensor) -> Tensor:
    unit: Tensor = direction.to(like) / torch.linalg.vector_norm(direction)
    return unit


def named_value(name: str, over: Over = "stimuli", repeats: int = 10, seed: int = 0) -> Value:
    """The value of a name: `zero`, `mean`, `median`, `scalar_mean` or `resample`."""
    if repeats < 1:
        raise InputError(f"repeats: {repeats} prompts to resample from; give 1 or more")
    known: dict[str, Value] = {"zero": Zero(), "mean": Mean(over=over), "median": Median(over=over)}
    known |= {"scalar_mean": ScalarMean(), "resample": Resample(repeats, seed)}
    if name not in known:
        raise InputError(f"value: {name!r} is not one of {', '.join(known)}")
    return known[name]


Position = str | int


@dataclass(frozen=True, eq=False)
class Intervention:
    """A change of the vectors at a site.

    Attributes:
        site: A named site, such as `blocks.3.attn.z.1`.
        value: What the vectors become.
        positions: A role such as `end`, an index of a token, negative ones from the end, several
            of these, or `all`.
        units: The dimensions that change, or the latents; default all of them.
        dictionary: An autoencoder whose latents change; what it does not explain stays.
    """

    site: str
    value: Value
    positions: Position | Sequence[Position] = "all"
    units: Sequence[int] | None = None
    dictionary: EncodesAndDecodes | None = None


# The interventions of one run, which take effect in the order of the forward pass.
Cell = Sequence[Intervention]
