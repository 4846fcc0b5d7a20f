"""Latents of which few are not zero, as the few that they are."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SparseLatents:
    """The non-zero latents of each row, and where they are.

    Attributes:
        values: `(rows, room)`, with a graph where there is one; zero where a row has fewer.
        indices: Which latents they are, `(rows, room)`, int32; no latent twice in a row but for
            zeros.
        width: How many latents there are.
    """

    values: Tensor
    indices: Tensor
    width: int

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dtype(self) -> torch.dtype:
        """That of the values."""
        return self.values.dtype

    def dense(self) -> Tensor:
        """All latents, `(rows, width)`; the gradient passes to those that are not zero."""
        zeros = self.values.new_zeros(len(self), self.width)
        return zeros.scatter_add(1, self.indices.long(), self.values)

    def detach(self) -> "SparseLatents":
        """The same without a graph."""
        return SparseLatents(self.values.detach(), self.indices, self.width)

    def fired(self) -> Tensor:
        """On how many rows each latent is not zero, `(width,)`, int64."""
        active = self.values.detach() != 0
        counts = self.indices.new_zeros(self.width, dtype=torch.int64)
        # Of whole numbers, so that their order does not matter; no GPU is waited for.
        return counts.scatter_add_(0, self.indices.flatten().long(), active.flatten().long())


# However they come.
Latents = Tensor | SparseLatents
