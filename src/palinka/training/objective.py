"""What a step of training minimizes: weighted terms, two of which may warm up."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from palinka.errors import InputError
from palinka.kernels.layout import WHOLE, Layout
from palinka.training.losses import decorrelation_loss
from palinka.training.terms import Terms


class Losses(NamedTuple):
    """The terms of one step's loss, with their weights; None where an architecture has none."""

    reconstruction: Tensor
    sparsity: Tensor
    decorrelation: Tensor
    auxiliary: Tensor | None = None

    @property
    def named(self) -> dict[str, Tensor]:
        """Those that there are."""
        return {name: term for name, term in self._asdict().items() if term is not None}

    @property
    def total(self) -> Tensor:
        """What is minimized."""
        return sum(self.named.values(), start=torch.zeros_like(self.reconstruction))


@dataclass(frozen=True)
class Objective:
    """Weights of the penalties, and the optimizer steps over which each grows from zero.

    Raises:
        InputError: If one of them is negative or no number.
    """

    sparsity_weight: float
    decorrelation_weight: float
    sparsity_warmup_steps: int
    decorrelation_warmup_steps: int
    auxiliary_weight: float | None = None
    """None for what the architecture's paper has."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None and name == "auxiliary_weight":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise InputError(f"{name} must be at least 0, got {value!r}")

    def __call__(self, terms: Terms, step: int, layout: Layout = WHOLE) -> Losses:
        """The losses of a batch after `step` optimizer steps.

        Args:
            terms: What the architecture makes of the batch.
            step: Number of optimizer steps taken so far.
            layout: The processes whose batches count as one, and those with the other latents.
        """
        sparsity = self.sparsity_weight * linear_warmup(step, self.sparsity_warmup_steps)
        decorrelation = self.decorrelation_weight * linear_warmup(
            step, self.decorrelation_warmup_steps
        )
        auxiliary = (
            terms.auxiliary_weight if self.auxiliary_weight is None else self.auxiliary_weight
        )
        latents = terms.output.latents
        return Losses(
            reconstruction=terms.reconstruction,
            sparsity=sparsity * terms.sparsity,
            # By far the most expensive term, so not for nothing.
            decorrelation=decorrelation * decorrelation_loss(latents, layout.rows, layout.latents)
            if decorrelation > 0
            else torch.zeros_like(terms.reconstruction),
            auxiliary=None if terms.auxiliary is None else auxiliary * terms.auxiliary,
        )


def linear_warmup(step: int, steps: int) -> float:
    """Linear from 0 at step 0 to 1 from step `steps` on."""
    return 1.0 if steps == 0 else min(1.0, step / steps)
