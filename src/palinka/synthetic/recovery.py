"""How well a dictionary has found the directions that data was made of."""

import torch
from torch import Tensor

from palinka.errors import InputError

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
