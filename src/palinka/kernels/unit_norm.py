"""Rows of norm 1: the gradient that keeps them so, and bringing them back to it."""

import torch
from torch import Tensor

from palinka.kernels import choice, loops
from palinka.kernels.compiled import in_parallel


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
    return choice.loops_take(*tensors) and all(tensor.is_contiguous() for tensor in tensors)
