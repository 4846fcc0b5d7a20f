"""Common start of every side in a contest of training steps."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """Sizes, weights and data that all sides share.

    Attributes:
        dictionary: Directions of norm 1, `(latents, width)`; every side encodes and decodes by
            them at first, with biases of zero.
        batch: The activations of every step, `(rows, width)`.
        k: How many latents a row keeps.
        dead: Latents that count as dead at every step, which AuxK then trains; None to do
            without AuxK.
    """

    dictionary: Tensor
    batch: Tensor
    k: int
    dead: Tensor | None = None

    @classmethod
    def drawn(cls, rows: int, width: int, latents: int, k: int, dead: int = 0) -> "Setting":
        """Draw a setting, the same at every call.

        Args:
            rows: Rows of a batch.
            width: Width of the activations.
            latents: How many there are.
            k: How many of them a row keeps.
            dead: How many count as dead.
        """
        generator = torch.Generator().manual_seed(0)
        dictionary = torch.randn(latents, width, generator=generator)
        dictionary /= dictionary.norm(dim=1, keepdim=True)
        batch = torch.randn(rows, width, generator=generator)
        chosen = torch.randperm(latents, generator=generator)[:dead]
        return cls(dictionary, batch, k, chosen if dead else None)

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        return self.batch.shape[0]

    @property
    def width(self) -> int:
        """Width of the activations."""
        return self.batch.shape[1]

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.dictionary.shape[0]
