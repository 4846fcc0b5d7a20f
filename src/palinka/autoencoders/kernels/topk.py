"""Top-k selection, sparse latents and unit norm."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from palinka.autoencoders.distributed import gather_columns, world_size
from palinka.autoencoders.kernels import dispatch, loops
from palinka.autoencoders.kernels.dispatch import in_parallel


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
    if k >= values.shape[-1] * world_size(group):
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
    if dispatch.supports_numba(whole):
        array = whole.numpy()
        in_parallel(loops.keep_positive, len(array), array, array.view(INTEGERS[whole.dtype]), k)
        return values if whole is values else values.copy_(whole)
    values.relu_()
    return values.masked_fill_(values < kth_largest(values, k), 0.0)


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
    kept = even_share * world_size(group)
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


def project_gradient_plain(gradient: Tensor, rows: Tensor) -> Tensor:
    """What `project_gradient_` computes, as it is defined."""
    return gradient - (gradient * rows).sum(dim=1, keepdim=True) * rows


def normalize_rows_plain(rows: Tensor) -> Tensor:
    """What `normalize_rows_` computes, as it is defined."""
    norm = rows.norm(dim=1, keepdim=True)
    unit: Tensor = rows / norm.where(norm > 0, 1.0)
    return unit


@torch.no_grad()
def project_gradient_(gradient: Tensor, rows: Tensor) -> None:
    """Take out of each row of a gradient what would only change the norm of a row of norm 1.

    Args:
        gradient: `(rows, width)`, changed in place.
        rows: `(rows, width)`.
    """
    if _in_one_go(gradient, rows):
        in_parallel(loops.tangents, len(rows), gradient.numpy(), rows.detach().numpy())
    else:
        gradient.copy_(project_gradient_plain(gradient, rows))


@torch.no_grad()
def normalize_rows_(rows: Tensor) -> None:
    """Scale each of the rows `(rows, width)` to norm 1, in place; a row of zeros stays one."""
    if _in_one_go(rows):
        in_parallel(loops.unit_rows, len(rows), rows.detach().numpy())
        torch.autograd.graph.increment_version(rows)
    else:
        rows.copy_(normalize_rows_plain(rows))


def _in_one_go(*tensors: Tensor) -> bool:
    """Whether a loop can read and write each row just once."""
    return dispatch.supports_numba(*tensors) and all(tensor.is_contiguous() for tensor in tensors)
