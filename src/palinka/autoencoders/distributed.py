"""Collectives, and how rows and latents are sharded over processes."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

# Renamed in torch 2.13.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def world_size(group: dist.ProcessGroup | None) -> int:
    """How many processes there are in a group."""
    return 1 if group is None else dist.get_world_size(group)


def gather_rows(rows: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, int]:
    """Every process's rows, one process after the other, and where this one's begin.

    Args:
        rows: `(rows, width)`, as many rows on every process.
        group: The processes that share the batch.

    Returns:
        `(processes * rows, width)` without a graph, and the index of the first own row.
    """
    if group is None:
        return rows, 0
    gathered = rows.new_empty(world_size(group) * len(rows), rows.shape[1])
    _all_gather(gathered, rows.detach().contiguous(), group=group)
    return gathered, dist.get_rank(group) * len(rows)


def gather_unequal_rows(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Every process's rows, one process after the other, however many each of them has.

    Args:
        rows: `(rows, width)`, of the same width on every process.
        group: The processes that share the batch.

    Returns:
        `(all rows, width)`, without a graph.
    """
    if group is None:
        return rows
    counts, _ = gather_rows(torch.tensor([[len(rows)]], device=rows.device), group)
    most = int(counts.max())
    padded = rows.new_zeros(most, rows.shape[1])
    padded[: len(rows)] = rows.detach()
    gathered, _ = gather_rows(padded, group)
    there = torch.arange(most, device=rows.device) < counts
    return gathered[there.flatten()]


def gather_columns(columns: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Every process's columns side by side, on every process.

    Args:
        columns: `(…, width)`, of the same shape on every process.
        group: The processes.

    Returns:
        `(…, processes * width)`, without a graph.
    """
    if group is None:
        return columns
    parts = columns.new_empty(world_size(group) * columns.numel())
    _all_gather(parts, columns.detach().flatten(), group=group)
    return parts.view(world_size(group), *columns.shape).movedim(0, -2).flatten(-2)


def sum_over(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of a tensor over the processes, written over the tensor that was given."""
    if group is not None:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor


def minimum_over(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The elementwise minimum over the processes, written over the tensor that was given."""
    if group is not None:
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN, group=group)
    return tensor


def broadcast(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """What the first process has, written over the tensor that was given."""
    if group is not None:
        dist.broadcast(tensor, group=group, group_src=0)
    return tensor


def reduce_from_tensor_parallel(part: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of what each process holds a part of; a part's gradient is that of the sum.

    For what every process then goes on with in the same way, as with a reconstruction of which
    each knows the part of its own latents.
    """
    if group is None:
        return part
    whole: Tensor = _ReduceFromTensorParallel.apply(part, group)  # type: ignore[no-untyped-call]
    return whole


def copy_to_tensor_parallel(whole: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The tensor itself; its gradient is the sum of those of all processes.

    For what is the same on every process and of which each computes another part, as with a bias
    that is subtracted from what all latents read.
    """
    if group is None:
        return whole
    same: Tensor = _CopyToTensorParallel.apply(whole, group)  # type: ignore[no-untyped-call]
    return same


def world() -> dist.ProcessGroup | None:
    """All processes of this run, or None where there is only this one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return dist.group.WORLD


class _ReduceFromTensorParallel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        return sum_over(part.clone(memory_format=torch.contiguous_format), group)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output, None


class _CopyToTensorParallel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return sum_over(grad_output.clone(memory_format=torch.contiguous_format), ctx.group), None


class Sharding(NamedTuple):
    """Who holds what this process does not; None where it holds all there is."""

    rows: dist.ProcessGroup | None = None
    """Processes with the other rows of the batch, for the same latents."""
    latents: dist.ProcessGroup | None = None
    """Processes with the other latents, for the same rows."""

    def own(self, latent_dim: int) -> slice:
        """Which of all latents this process holds."""
        width = latent_dim // world_size(self.latents)
        first = 0 if self.latents is None else dist.get_rank(self.latents) * width
        return slice(first, first + width)


UNSHARDED = Sharding()
