"""Taking the mean out of a batch of latents, and putting the penalty's gradient together."""

import torch
from torch import Tensor

from palinka.kernels import choice, loops
from palinka.kernels.compiled import in_parallel


def center_plain(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What `center` computes, as it is defined."""
    centered = rows - rows.mean(dim=0)
    return centered, centered.square().sum(dim=0) / (len(rows) - 1)


def center(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows less their mean, `(rows, width)`, and the unbiased variance of each column, `(width,)`.

    Args:
        rows: `(rows, width)`, at least two, in float32 or better.
    """
    if not (choice.loops_take(rows) and rows.is_contiguous()):
        return center_plain(rows)
    centered, variance = torch.empty_like(rows), rows.new_empty(rows.shape[1])
    arrays = rows.detach().numpy(), centered.numpy(), variance.numpy()
    in_parallel(loops.center, rows.shape[1], *arrays)
    return centered, variance


def subtract_variance_plain(
    product: Tensor, centered: Tensor, variance: Tensor, scale: Tensor
) -> Tensor:
    """What `subtract_variance` computes, as it is defined."""
    return (product - centered * variance) * scale


def subtract_variance(product: Tensor, centered: Tensor, variance: Tensor, scale: Tensor) -> Tensor:
    """`scale (product - variance * centered)`, which may be written over the product.

    Args:
        product: `(rows, width)`.
        centered: `(rows, width)`.
        variance: `(width,)`.
        scale: What all is multiplied with, a scalar.
    """
    arrays = product, centered, variance
    if not (choice.loops_take(*arrays) and all(array.is_contiguous() for array in arrays)):
        return subtract_variance_plain(product, centered, variance, scale)
    numbers = [array.detach().numpy() for array in arrays]
    in_parallel(loops.subtract_variance, len(product), *numbers, scale.detach().numpy().item())
    return product
