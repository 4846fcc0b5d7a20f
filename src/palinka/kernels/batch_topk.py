"""The threshold above which lie the largest values of a whole batch, over all processes."""

import torch
import torch.distributed as dist
from torch import Tensor

from palinka.kernels.collectives import gather_columns, processes
from palinka.kernels.topk import kth_largest


def batch_threshold_plain(values: Tensor, k: int) -> Tensor:
    """What `batch_threshold` computes, as it is defined, on one process."""
    rows = values.numel() // values.shape[-1]
    return values.detach().flatten().sort(descending=True).values[rows * k - 1]


def batch_threshold(values: Tensor, k: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """The smallest of the values that a batch keeps when it keeps `k` for each of its rows.

    Exact under any number of processes. Each tells the others a quarter more than its even share
    of the largest values, which all but always settles the matter; twice as many, and so on,
    where it does not.

    Args:
        values: `(…, width)`, of the same shape on every process; at least one row.
        k: How many values to keep per row on average, from 1 to the width.
        group: Processes whose rows make up the batch.

    Returns:
        A scalar, the same on every process, without a graph; NaN where a value is.

    Source:
        Bussmann et al. (2024), BatchTopK sparse autoencoders, arXiv 2412.06410.
    """
    own = values.detach().reshape(1, -1)
    even_share = own.shape[1] // values.shape[-1] * k
    kept = even_share * processes(group)
    if group is None:
        return kth_largest(own, kept).reshape(())
    told = even_share + even_share // 4
    while True:
        told = min(told, own.shape[1])
        candidates = torch.topk(own, told, sorted=False).values
        everyone = gather_columns(candidates, group)
        threshold = kth_largest(everyone, kept).reshape(())
        # What a process has kept back is at most the smallest value that it told.
        smallest = everyone.view(-1, told).amin(dim=1)
        if told == own.shape[1] or not bool((smallest > threshold).any()):
            return threshold
        told *= 2
