"""What a step of training minimizes: three weighted terms, two of which may warm up."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from palinka.autoencoders import AutoencoderOutput
from palinka.errors import InputError
from palinka.kernels.layout import WHOLE, Layout
from palinka.training.losses import decorrelation_loss, reconstruction_loss, sparsity_loss


class Losses(NamedTuple):
    """The terms of one step's loss, with their weights."""

    reconstruction: Tensor
    sparsity: Tensor
    decorrelation: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimized."""
        return self.reconstruction + self.sparsity + self.decorrelation


@dataclass(frozen=True)
class Objective:
    """Weights of the penalties, and the optimizer steps over which each grows from zero.

    Raises:
        InputError: If one of them is negative.
    """

    sparsity_weight: float
    decorrelation_weight: float
    sparsity_warmup_steps: int
    decorrelation_warmup_steps: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise InputError(f"{name} must be at least 0, got {value}")

    def __call__(
        self,
        x: Tensor,
        output: AutoencoderOutput,
        step: int,
        layout: Layout = WHOLE,
    ) -> Losses:
        """The losses of a batch `(rows, input_dim)` after `step` optimizer steps.

        Args:
            x: What the autoencoder saw.
            output: What it gave.
            step: Number of optimizer steps taken so far.
            layout: The processes whose batches count as one, and those with the other latents.
        """
        reconstruction = reconstruction_loss(output.reconstruction, x)
        sparsity = self.sparsity_weight * linear_warmup(step, self.sparsity_warmup_steps)
        decorrelation = self.decorrelation_weight * linear_warmup(
            step, self.decorrelation_warmup_steps
        )
        return Losses(
            reconstruction=reconstruction,
            sparsity=sparsity * sparsity_loss(output.latents, layout.latents),
            # By far the most expensive term, so not for nothing.
            decorrelation=decorrelation
            * decorrelation_loss(output.latents, layout.rows, layout.latents)
            if decorrelation > 0
            else torch.zeros_like(reconstruction),
        )


def linear_warmup(step: int, steps: int) -> float:
    """Linear from 0 at step 0 to 1 from step `steps` on."""
    return 1.0 if steps == 0 else min(1.0, step / steps)
