"""Noticing activations that are no numbers, without waiting for the device at every step."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Buffer

from palinka.errors import InputError
from palinka.kernels.collectives import sum_over


class ActivationWatch(nn.Module):
    """Counts the batches with NaN or Inf on the device; `check` is where the count is read."""

    def __init__(self) -> None:
        super().__init__()
        self.unreadable = Buffer(torch.zeros((), dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take one batch; a sum is finite only if every summand is."""
        self.unreadable.add_(~torch.isfinite(x.sum()))

    def check(self, group: dist.ProcessGroup | None = None) -> None:
        """Stop on every process if any process saw such a batch.

        Raises:
            InputError: If there was one.
        """
        unreadable = int(sum_over(self.unreadable.clone(), group))
        if unreadable:
            raise InputError(
                f"{unreadable} batches of activations hold NaN or Inf: look at the language"
                " model's output at this site, or store the activations in a wider dtype"
            )
