"""Collectives, which do nothing without a process group, and sharding over processes."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

# Renamed in torch 2.13.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
Group = dist.ProcessGroup | None


def world() -> Group:
    """All processes of this run; None if there is only one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return dist.group.WORLD


def world_size(group: Group) -> int:
    """Number of processes in a group."""
    return 1 if group is None else dist.get_world_size(group)


def gather_rows(rows: Tensor, group: Group) -> tuple[Tensor, int]:
    """Gather rows `(rows, width)`, as many on every process, in the order of ranks.

    Without a graph, `(processes * rows, width)`, and the index of the first own row.
    """
    if group is None:
        return rows, 0
    gathered = rows.new_empty(world_size(group) * len(rows), rows.shape[1])
    _all_gather(gathered, rows.detach().contiguous(), group=group)
    return gathered, dist.get_rank(group) * len(rows)


def gather_unequal_rows(rows: Tensor, group: Group) -> Tensor:
    """Gather rows `(rows, width)`, another number on each process, without a graph."""
    if group is None:
        return rows
    counts, _ = gather_rows(torch.tensor([[len(rows)]], device=rows.device), group)
    most = int(counts.max())
    padded = rows.new_zeros(most, rows.shape[1])
    padded[: len(rows)] = rows.detach()
    gathered, _ = gather_rows(padded, group)
    valid = torch.arange(most, device=rows.device) < counts
    return gathered[valid.flatten()]


def gather_columns(columns: Tensor, group: Group) -> Tensor:
    """Gather columns `(…, width)`, as many on every process, without a graph."""
    if group is None:
        return columns
    parts, _ = gather_rows(columns.flatten()[None], group)
    return parts.view(world_size(group), *columns.shape).movedim(0, -2).flatten(-2)


def all_reduce(tensor: Tensor, group: Group, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """All-reduce a tensor, by default to its sum, in place."""
    if group is not None:
        dist.all_reduce(tensor, op=op, group=group)
    return tensor


def broadcast(tensor: Tensor, group: Group) -> Tensor:
    """Broadcast a tensor from the first process, in place."""
    if group is not None:
        dist.broadcast(tensor, group=group, group_src=0)
    return tensor


def copy_to_tensor_parallel(tensor: Tensor, group: Group) -> Tensor:
    """Identity with an all-reduced gradient: the operator *f* of Megatron-LM, figure 3."""
    if group is None or not (torch.is_grad_enabled() and tensor.requires_grad):
        return tensor
    copy = tensor.view_as(tensor)
    copy.register_hook(lambda of_copy: all_reduce(_copy(of_copy), group))  # type: ignore[no-untyped-call]
    return copy


def reduce_from_tensor_parallel(part: Tensor, group: Group) -> Tensor:
    """Sum of the parts of all processes, whose gradient is each part's: the operator *g*."""
    if group is None:
        return part
    total: Tensor = _ReduceFromTensorParallel.apply(part, group)  # type: ignore[no-untyped-call]
    return total


class _ReduceFromTensorParallel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        return all_reduce(_copy(part), group)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output, None


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


class Sharding(NamedTuple):
    """Processes with the batch's other rows and those with the other latents, or None."""

    rows: Group = None
    latents: Group = None

    def own(self, latent_dim: int) -> slice:
        """Slice of all latents that this process holds."""
        width = latent_dim // world_size(self.latents)
        first = 0 if self.latents is None else dist.get_rank(self.latents) * width
        return slice(first, first + width)


UNSHARDED = Sharding()
