"""Decorrelation penalty."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from palinka.autoencoders.distributed import gather_rows, sum_over, world_size
from palinka.autoencoders.kernels import dispatch, loops
from palinka.autoencoders.kernels.dispatch import (
    factor_dtype,
    in_parallel,
    raise_on_double_backward,
    statistics_dtype,
)
from palinka.autoencoders.kernels.sparse import Columns
from palinka.autoencoders.kernels.topk import SparseLatents
from palinka.errors import InputError


def center_plain(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What `center` computes, as it is defined."""
    centered = rows - rows.mean(dim=0)
    return centered, centered.square().sum(dim=0) / (len(rows) - 1)


def center(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows less their mean, `(rows, width)`, and the unbiased variance of each column, `(width,)`.

    Args:
        rows: `(rows, width)`, at least two, in float32 or better.
    """
    if not (dispatch.supports_numba(rows) and rows.is_contiguous()):
        return center_plain(rows)
    centered, variance = torch.empty_like(rows), rows.new_empty(rows.shape[1])
    arrays = rows.detach().numpy(), centered.numpy(), variance.numpy()
    in_parallel(loops.center, rows.shape[1], *arrays)
    return centered, variance


def subtract_variance_plain(
    product: Tensor, centered: Tensor, variance: Tensor, scale: Tensor
) -> Tensor:
    """What `subtract_variance` computes, as it is defined."""
    return (product - centered * variance) * scale


def subtract_variance(product: Tensor, centered: Tensor, variance: Tensor, scale: Tensor) -> Tensor:
    """`scale (product - variance * centered)`, which may be written over the product.

    Args:
        product: `(rows, width)`.
        centered: `(rows, width)`.
        variance: `(width,)`.
        scale: What all is multiplied with, a scalar.
    """
    arrays = product, centered, variance
    if not (dispatch.supports_numba(*arrays) and all(array.is_contiguous() for array in arrays)):
        return subtract_variance_plain(product, centered, variance, scale)
    numbers = [array.detach().numpy() for array in arrays]
    in_parallel(loops.subtract_variance, len(product), *numbers, scale.detach().numpy().item())
    return product


def squared_covariance_plain(latents: Tensor) -> Tensor:
    """What `squared_covariance` computes, as it is defined, on one process."""
    width = latents.shape[1]
    covariance = torch.cov(latents.T).reshape(width, width)  # of one latent it has no dimensions
    return covariance.square().sum() - covariance.diagonal().square().sum()


def squared_covariance(
    latents: Tensor,
    group: dist.ProcessGroup | None = None,
    slices: dist.ProcessGroup | None = None,
) -> Tensor:
    """Sum the squared unbiased covariances of all ordered pairs of different latents.

    Takes the form whose matrix is smaller. bfloat16 latents are multiplied in bfloat16;
    everything else happens in float32 or better. Differentiable once.

    Args:
        latents: `(rows, latents)`.
        group: Processes whose rows make up the batch; each must hold as many rows.
        slices: Processes that hold the other latents of the same rows.

    Returns:
        A scalar, in float32 or better.

    Raises:
        InputError: If the batch has fewer than two rows, where no covariance is defined.

    Source:
        The identity of the Frobenius norms of `Z Zᵀ` and `Zᵀ Z`; the penalty is that of Cogswell
        et al. (2016), reducing overfitting by decorrelating representations, times two.
    """
    rows = len(latents) * world_size(group)
    if rows < 2:
        raise InputError(
            f"the covariance of latents needs at least 2 rows in a batch, got {rows}:"
            " use a larger batch_size or decorrelation_weight 0"
        )
    # The forms choose their own precision, also where autocast would choose another.
    with torch.autocast(latents.device.type, enabled=False):
        value: Tensor
        if rows < latents.shape[1] or slices is not None:
            value = _GramForm.apply(latents, group, slices)  # type: ignore[no-untyped-call]
        else:
            value = _CovarianceForm.apply(latents, group)  # type: ignore[no-untyped-call]
    return value


class _GramForm(torch.autograd.Function):
    """By the Gram matrix of the rows, each process computing the part of its own rows."""

    @staticmethod
    def forward(
        ctx: Any,
        latents: Tensor,
        group: dist.ProcessGroup | None,
        slices: dist.ProcessGroup | None,
    ) -> Tensor:
        everyone, first = gather_rows(latents, group)
        centered, variance = center(everyone.to(statistics_dtype(latents.dtype)))
        factor = centered.to(factor_dtype(latents.dtype))
        own = factor[first : first + len(latents)]
        gram = sum_over(own @ factor.T / (len(centered) - 1), slices)
        ctx.save_for_backward(centered, gram, variance)
        ctx.first, ctx.processes, ctx.dtype = first, world_size(group), latents.dtype
        total = sum_over(gram.square().sum(dtype=torch.float64), group)
        diagonal = sum_over(variance.square().sum(dtype=torch.float64), slices)
        return (total - diagonal).to(centered.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        raise_on_double_backward("squared_covariance")
        centered, gram, variance = ctx.saved_tensors
        own = centered[ctx.first : ctx.first + len(gram)]
        with torch.autocast(centered.device.type, enabled=False):
            product = (gram @ centered.to(gram.dtype)).to(variance.dtype)
        scale = grad_output * (4.0 * ctx.processes / (len(centered) - 1))
        return subtract_variance(product, own, variance, scale).to(ctx.dtype), None, None


class _CovarianceForm(torch.autograd.Function):
    """By the covariance matrix of the latents, which the processes sum up."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        rows = len(latents) * world_size(group)
        centered = latents.to(statistics_dtype(latents.dtype))
        mean = sum_over(centered.sum(dim=0), group) / rows
        factor = (centered - mean).to(factor_dtype(latents.dtype))
        covariance = sum_over(factor.T @ factor, group) / (rows - 1)
        covariance.fill_diagonal_(0.0)
        ctx.save_for_backward(latents, mean, covariance)
        ctx.scale = 4.0 * world_size(group) / (rows - 1)
        return covariance.square().sum(dtype=torch.float64).to(mean.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        raise_on_double_backward("squared_covariance")
        latents, mean, covariance = ctx.saved_tensors
        factor = (latents.to(mean.dtype) - mean).to(covariance.dtype)
        with torch.autocast(latents.device.type, enabled=False):
            gradient = factor @ covariance
        return (gradient * (grad_output * ctx.scale)).to(latents.dtype), None


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
    rows = len(latents) * world_size(group)
    if rows < 2:
        raise InputError(
            f"the covariance of latents needs at least 2 rows in a batch, got {rows}:"
            " use a larger batch_size or decorrelation_weight 0"
        )
    if not dispatch.supports_numba(latents.values):
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
        ctx.scale = 4.0 * world_size(group) / (len(numbers) - 1)
        ctx.shape, ctx.dtype = values.shape, values.dtype
        total = torch.tensor(squares.sum() / (len(numbers) - 1) ** 2, dtype=torch.float64)
        whole = sum_over(total, group) - float(variance @ variance)
        return whole.to(statistics_dtype(values.dtype))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        raise_on_double_backward("sparse_squared_covariance")
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
