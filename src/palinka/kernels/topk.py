"""The k largest values of each row, ties at the threshold included."""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from palinka.kernels import choice, loops
from palinka.kernels.collectives import gather_columns, processes
from palinka.kernels.compiled import in_parallel

# Integers as wide as the floats that are compared by their bits.
INTEGERS = {torch.float32: np.int32, torch.float64: np.int64}


def keep_top_k_plain(values: Tensor, k: int) -> Tensor:
    """What `keep_top_k` computes, as it is defined."""
    threshold = values.sort(dim=-1, descending=True).values[..., k - 1 : k]
    return values * (values >= threshold)


def kth_largest(values: Tensor, k: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """The k-th largest value of each row, over the columns of all processes.

    Each process tells the others its `k` largest, and no more. For a threshold over a whole
    batch, give the batch as one row, and the group of all processes.

    Args:
        values: `(…, width)`, of the same shape on every process.
        k: From 1 to the width of all processes together.
        group: Processes that hold the other columns of the same rows.

    Returns:
        `(…, 1)`, the same on every process, without a graph; NaN for a row with NaN among its
        largest, which every NaN is.
    """
    candidates = torch.topk(values.detach(), min(k, values.shape[-1]), dim=-1, sorted=False).values
    if group is not None:
        candidates = torch.topk(gather_columns(candidates, group), k, dim=-1, sorted=False).values
    return candidates.amin(dim=-1, keepdim=True)


def keep_top_k(values: Tensor, k: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Zero whatever is smaller than the k-th largest value of its row.

    Ties at the threshold are all kept, on whichever process they are, so that a row may keep
    more than `k`. A row with a NaN keeps everything, so that the NaN is seen downstream.

    Args:
        values: `(…, width)`.
        k: How many to keep, from 1 to the width of all processes together.
        group: Processes that hold the other columns of the same rows.

    Returns:
        `(…, width)`; the gradient passes where a value was kept.

    Source:
        Makhzani & Frey (2013), k-sparse autoencoders.
    """
    if k >= values.shape[-1] * processes(group):
        return values
    return values.masked_fill(values.detach() < kth_largest(values, k, group), 0.0)


@torch.no_grad()
def keep_positive_(values: Tensor, k: int) -> Tensor:
    """`keep_top_k` of the ReLU of values `(rows, width)`, written over them.

    Their gradient passes where the result is not zero.

    Args:
        values: `(rows, width)`, contiguous, without a graph.
        k: How many to keep, from 1 to the width.
    """
    if k >= values.shape[1]:
        return values.relu_()
    whole = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    if choice.loops_take(whole):
        array = whole.numpy()
        in_parallel(loops.keep_positive, len(array), array, array.view(INTEGERS[whole.dtype]), k)
        return values if whole is values else values.copy_(whole)
    values.relu_()
    return values.masked_fill_(values < kth_largest(values, k), 0.0)
