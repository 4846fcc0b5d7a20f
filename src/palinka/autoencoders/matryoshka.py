import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor
from torch.nn import functional

from palinka.autoencoders.batch_topk import BatchTopKAutoencoder
from palinka.errors import InputError

# Prefixes of 1/32, 3/32, 7/32, 15/32 and all of the dictionary.
PAPER = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)


class MatryoshkaAutoencoder(BatchTopKAutoencoder):
    """A BatchTopK autoencoder whose latents are ordered in groups, from general to specific.

    Training sums the losses of the reconstructions by the first group, the first two, and so on.
    Latents are chosen as in `BatchTopKAutoencoder`, from all groups together.

    Args:
        group_fractions: Size of each group, as fractions of `latent_dim` that sum to 1.

    Attributes:
        prefixes: Number of latents in the first group, the first two, …, all of them.

    Source:
        Bussmann et al. (2025), Matryoshka sparse autoencoders, arXiv 2503.17547.
    """

    def __init__(
        self, input_dim: int, latent_dim: int | None = None, k: int | None = None,
        group_fractions: Sequence[float] = PAPER, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(input_dim, latent_dim, k, **settings)
        self.group_fractions = fractions = list(group_fractions)
        numbers = all(isinstance(f, int | float) and f > 0 for f in fractions)
        if not numbers or not math.isclose(sum(fractions), 1.0, rel_tol=1e-6):
            raise InputError(f"group_fractions must be positive and sum to 1, got {fractions}")
        self.prefixes = [round(end * self.latent_dim) for end in accumulate(fractions)]
        if any(start >= end for start, end in pairwise([0, *self.prefixes])):
            fault = f"group_fractions {fractions} leave a group of {self.latent_dim} latents empty"
            raise InputError(f"{fault}: use fewer groups, or a larger latent_dim")

    def decode_prefixes(self, latents: Tensor) -> list[Tensor]:
        """Latents `(…, latent_dim)` to the reconstruction by each prefix, the whole one last."""
        self.check_width(latents, self.latent_dim, "latents")
        parts = [
            functional.linear(latents[..., start:end], self.decoder_weight[start:end].T)
            for start, end in pairwise([0, *self.prefixes])
        ]
        parts[0] = parts[0] + self.decoder_bias
        return list(accumulate(parts))
