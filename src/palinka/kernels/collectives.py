"""What the processes of one run tell each other; without a group, every function is local."""

import torch.distributed as dist
from torch import Tensor


def processes(group: dist.ProcessGroup | None) -> int:
    """How many processes share the batch."""
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
    gathered = rows.new_empty(processes(group) * len(rows), rows.shape[1])
    dist.all_gather_into_tensor(gathered, rows.detach().contiguous(), group=group)
    return gathered, dist.get_rank(group) * len(rows)


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


def world() -> dist.ProcessGroup | None:
    """All processes of this run, or None where there is only this one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return dist.group.WORLD
