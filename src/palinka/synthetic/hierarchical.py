"""Features that are active only if another is: a child only if its parent is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from palinka.errors import InputError
from palinka.synthetic.data import SyntheticData


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
