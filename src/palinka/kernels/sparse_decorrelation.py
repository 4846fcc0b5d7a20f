"""The sum of squared covariances of latents of which few are not zero.

It is the Gram form of `decorrelation`, but two rows have a product only through the latents that
both keep. So the matrix costs as many multiplications as there are pairs of rows that share a
latent, counted for each latent: at most `B² k`, and for latents that fire now and then far fewer.
The mean is taken out of the products, not out of the rows. A row of the matrix is used at once
and made again for the gradient, so that not even `B x B` numbers are kept. All in float64, which
costs nothing here.
"""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from palinka.errors import InputError
from palinka.kernels import choice, loops
from palinka.kernels.collectives import gather_rows, processes, sum_over
from palinka.kernels.compiled import in_parallel
from palinka.kernels.decorrelation import squared_covariance, squared_covariance_plain
from palinka.kernels.once import refuse_second_derivative
from palinka.kernels.precision import statistics_dtype
from palinka.kernels.sparse_latents import SparseLatents
from palinka.kernels.sparse_pass import Columns


def sparse_squared_covariance_plain(latents: SparseLatents) -> Tensor:
    """What `sparse_squared_covariance` computes, as it is defined, on one process."""
    return squared_covariance_plain(latents.dense())


def sparse_squared_covariance(
    latents: SparseLatents, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Sum the squared unbiased covariances of all ordered pairs of different latents.

    The gradient is that at the latents that are not zero: it passes to no other where the
    largest were kept. Differentiable once. Latents that no loop takes,
    as those on a GPU, are made a matrix.

    Args:
        latents: The rows of this process.
        group: Processes whose rows make up the batch; each must hold as many rows.

    Returns:
        A scalar, in float32 or better; with a group, the gradient is that of the own rows times
        the number of processes.

    Raises:
        InputError: If the batch has fewer than two rows, where no covariance is defined.
    """
    rows = len(latents) * processes(group)
    if rows < 2:
        raise InputError(
            f"the covariance of latents needs at least 2 rows in a batch, got {rows}:"
            " use a larger batch_size or decorrelation_weight 0"
        )
    if not choice.loops_take(latents.values):
        return squared_covariance(latents.dense(), group)
    value: Tensor = _SparseGramForm.apply(  # type: ignore[no-untyped-call]
        latents.values, latents.indices, latents.width, group
    )
    return value


class _SparseGramForm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, indices: Tensor, width: int, group: dist.ProcessGroup | None
    ) -> Tensor:
        own = len(values)
        everyone, places, first = _gathered(values.detach(), indices, group)
        offsets, rows, entries = Columns(everyone, places, width).places
        numbers, columns = everyone.numpy(), places.numpy()
        count = int(offsets[-1])
        weights = numbers[rows[:count], entries[:count]].astype(np.float64)
        mean, variance = np.empty((2, width))
        in_parallel(loops.variances, width, offsets, weights, len(numbers), mean, variance)
        along = (numbers * mean[columns]).sum(axis=1) - mean @ mean / 2
        pattern = numbers, columns, offsets, rows, weights, along
        squares = np.empty(own)
        in_parallel(loops.gram_squares, own, first, *pattern, squares)
        ctx.pattern, ctx.moments, ctx.first = pattern, (mean, variance), first
        ctx.scale = 4.0 * processes(group) / (len(numbers) - 1)
        ctx.shape, ctx.dtype = values.shape, values.dtype
        total = torch.tensor(squares.sum() / (len(numbers) - 1) ** 2, dtype=torch.float64)
        whole = sum_over(total, group) - float(variance @ variance)
        return whole.to(statistics_dtype(values.dtype))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_derivative("sparse_squared_covariance")
        gradient = torch.empty(ctx.shape, dtype=ctx.dtype)
        in_parallel(
            loops.gram_products,
            len(gradient),
            ctx.first,
            *ctx.pattern,
            *ctx.moments,
            ctx.scale * float(grad_output),
            gradient.numpy(),
        )
        return gradient, None, None, None


def _gathered(
    values: Tensor, indices: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, int]:
    """Every process's entries, in as much room as the process with the most needs."""
    if group is None:
        return values.contiguous(), indices.contiguous(), 0
    rooms, _ = gather_rows(torch.tensor([[values.shape[1]]]), group)
    more = int(rooms.max()) - values.shape[1]
    values, indices = (torch.nn.functional.pad(t, (0, more)) for t in (values, indices))
    everyone, first = gather_rows(values, group)
    places, _ = gather_rows(indices, group)
    return everyone, places, first
