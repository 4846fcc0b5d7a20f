"""The k largest values of each row, ties at the threshold included."""

import torch
from torch import Tensor


def keep_top_k_plain(values: Tensor, k: int) -> Tensor:
    """What `keep_top_k` computes, as it is defined."""
    threshold = values.sort(dim=-1, descending=True).values[..., k - 1 : k]
    return values * (values >= threshold)


def keep_top_k(values: Tensor, k: int) -> Tensor:
    """Zero whatever is smaller than the k-th largest value of its row.

    Ties at the threshold are all kept, so that a row may keep more than `k`. A row with a NaN
    keeps everything, so that the NaN is seen downstream.

    Args:
        values: `(…, width)`.
        k: How many to keep, from 1 to `width`.

    Returns:
        `(…, width)`; the gradient passes where a value was kept.

    Source:
        Makhzani & Frey (2013), k-sparse autoencoders.
    """
    if k >= values.shape[-1]:
        return values
    largest = torch.topk(values.detach(), k, dim=-1, sorted=False).values
    threshold = largest.amin(dim=-1, keepdim=True)
    return values.masked_fill(values.detach() < threshold, 0.0)
