"""Top-k selection and unit norm."""

import torch
from torch import Tensor

from palinka.autoencoders.distributed import Group, gather_columns, world_size
from palinka.autoencoders.kernels import loops
from palinka.autoencoders.kernels.loops import INTEGERS, in_parallel, supports_numba


def kth_largest(values: Tensor, k: int, group: Group = None) -> Tensor:
    """The k-th largest value of each row of `(…, width)`, over the columns of all processes.

    `(…, 1)`, without a graph. Each process sends only its `k` largest. NaN counts as the largest.
    """
    candidates = torch.topk(values.detach(), min(k, values.shape[-1]), dim=-1, sorted=False).values
    if group is not None:
        candidates = torch.topk(gather_columns(candidates, group), k, dim=-1, sorted=False).values
    return candidates.amin(dim=-1, keepdim=True)


def keep_top_k_plain(values: Tensor, k: int) -> Tensor:
    """Definition of `keep_top_k`, on one process."""
    threshold = values.sort(dim=-1, descending=True).values[..., k - 1 : k]
    return values * (values >= threshold)


def keep_top_k(values: Tensor, k: int, group: Group = None) -> Tensor:
    """Zero all values below the k-th largest of their row.

    The gradient of `(…, width)` passes where a value is kept. Ties at the threshold are all kept,
    on every process, so that a row may keep more than `k`. A row with a NaN keeps everything, so
    that the NaN propagates. `group` are the processes that hold the other columns of the rows.
    """
    if k >= values.shape[-1] * world_size(group):
        return values
    return values.masked_fill(values.detach() < kth_largest(values, k, group), 0.0)


@torch.no_grad()
def keep_positive_(values: Tensor, k: int) -> Tensor:
    """ReLU and `keep_top_k` in place, of contiguous values `(rows, width)` without a graph."""
    if k >= values.shape[1]:
        return values.relu_()
    wide = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    if supports_numba(wide):
        array = wide.numpy()
        in_parallel(loops.keep_positive, len(array), array, array.view(INTEGERS[wide.dtype]), k)
        return values if wide is values else values.copy_(wide)
    values.relu_()
    return values.masked_fill_(values < kth_largest(values, k), 0.0)


def batch_threshold_plain(values: Tensor, k: int) -> Tensor:
    """Definition of `batch_threshold`, on one process."""
    rows = values.numel() // values.shape[-1]
    return values.detach().flatten().sort(descending=True).values[rows * k - 1]


def batch_threshold(values: Tensor, k: int, group: Group = None) -> Tensor:
    """Smallest kept value of a batch that keeps `k` values per row on average, a scalar.

    Without a graph; NaN where a value is. The rows, `(…, width)`, one or more, are as many on every
    process of the group, and so is the result. Each process sends a quarter more than its even
    share of the largest values, which is nearly always enough, or twice as many, and so on.
    """
    own = values.detach().reshape(1, -1)
    even_share = own.shape[1] // values.shape[-1] * k
    kept = even_share * world_size(group)
    if group is None:
        return kth_largest(own, kept).reshape(())
    sent = even_share + even_share // 4
    while True:
        sent = min(sent, own.shape[1])
        candidates = torch.topk(own, sent, sorted=False).values
        gathered = gather_columns(candidates, group)
        threshold = kth_largest(gathered, kept).reshape(())
        # Values that a process has not sent are at most the smallest that it sent.
        smallest = gathered.view(-1, sent).amin(dim=1)
        if sent == own.shape[1] or not bool((smallest > threshold).any()):
            return threshold
        sent *= 2


def project_gradient_plain(gradient: Tensor, rows: Tensor) -> Tensor:
    """Definition of `project_gradient_`."""
    return gradient - (gradient * rows).sum(dim=1, keepdim=True) * rows


@torch.no_grad()
def project_gradient_(gradient: Tensor, rows: Tensor) -> None:
    """Project a gradient, in place, onto the tangent space of rows `(rows, width)` of norm 1."""
    if supports_numba(gradient, rows, contiguous=True):
        in_parallel(loops.tangents, len(rows), gradient.numpy(), rows.detach().numpy())
    else:
        gradient.copy_(project_gradient_plain(gradient, rows))


@torch.no_grad()
def normalize_rows_(rows: Tensor) -> None:
    """Scale each row of `(rows, width)` to norm 1, in place; a row of zeros stays zero."""
    norm = rows.norm(dim=1, keepdim=True)
    rows.div_(norm.where(norm > 0, 1.0))
