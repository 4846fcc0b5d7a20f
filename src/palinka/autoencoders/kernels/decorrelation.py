"""Decorrelation penalty."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from palinka.autoencoders.distributed import Group, all_reduce, gather_rows, world_size
from palinka.autoencoders.kernels import loops
from palinka.autoencoders.kernels.loops import in_parallel, statistics_dtype, supports_numba
from palinka.autoencoders.kernels.sparse import Latents, SparseLatents, sort_by_column
from palinka.errors import InputError


def squared_covariance_plain(latents: Tensor) -> Tensor:
    """Definition of `squared_covariance`, on one process."""
    width = latents.shape[1]
    covariance = torch.cov(latents.T).reshape(width, width)  # of one latent it has no dimensions
    return covariance.square().sum() - covariance.diagonal().square().sum()


def squared_covariance(latents: Latents, group: Group = None, slices: Group = None) -> Tensor:
    """Sum the squared unbiased covariances of all ordered pairs of different latents.

    Of dense latents, uses the smaller of Gram and covariance matrix; bfloat16 is multiplied in
    bfloat16, everything else happens in float32 or better. Sparse latents stay sparse on the
    CPU, and get a gradient only where they are not zero. Differentiable once; with a group, the
    gradient is that of the own rows times the number of processes. `group` and `slices` are those
    of `decorrelation_loss`; sliced latents must be dense.

    Source:
        The identity of the Frobenius norms of `Z Zᵀ` and `Zᵀ Z`; the penalty is that of Cogswell
        et al. (2016), reducing overfitting by decorrelating representations, times two.
    """
    rows = len(latents) * world_size(group)
    if rows < 2:
        fault = f"the covariance of latents needs at least 2 rows in a batch, got {rows}"
        raise InputError(f"{fault}: use a larger batch_size or decorrelation_weight 0")
    value: Tensor
    if isinstance(latents, SparseLatents) and supports_numba(latents.values):
        entries = latents.values, latents.indices, latents.width
        value = _SparseGramForm.apply(*entries, group)  # type: ignore[no-untyped-call]
        return value
    latents = latents.dense() if isinstance(latents, SparseLatents) else latents
    # The forms choose their own precision, under autocast too.
    with torch.autocast(latents.device.type, enabled=False):
        if rows < latents.shape[1] or slices is not None:
            value = _GramForm.apply(latents, group, slices)  # type: ignore[no-untyped-call]
        else:
            value = _CovarianceForm.apply(latents, group)  # type: ignore[no-untyped-call]
    return value


def _factor_dtype(dtype: torch.dtype) -> torch.dtype:
    # Sums of thousands would overflow in float16.
    return dtype if dtype == torch.bfloat16 else statistics_dtype(dtype)


class _GramForm(torch.autograd.Function):
    """By the Gram matrix of the rows, of which each process computes its own rows."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, group: Group, slices: Group) -> Tensor:
        gathered, first = gather_rows(latents, group)
        rows = gathered.to(statistics_dtype(latents.dtype))
        centered = rows - rows.mean(dim=0)
        variance = centered.square().sum(dim=0) / (len(rows) - 1)
        factor = centered.to(_factor_dtype(latents.dtype))
        own = factor[first : first + len(latents)]
        gram = all_reduce(own @ factor.T / (len(centered) - 1), slices)
        ctx.save_for_backward(centered, gram, variance)
        ctx.first, ctx.world_size, ctx.dtype = first, world_size(group), latents.dtype
        total = all_reduce(gram.square().sum(dtype=torch.float64), group)
        diagonal = all_reduce(variance.square().sum(dtype=torch.float64), slices)
        return (total - diagonal).to(centered.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        loops.raise_on_double_backward("squared_covariance")
        centered, gram, variance = ctx.saved_tensors
        own = centered[ctx.first : ctx.first + len(gram)]
        with torch.autocast(centered.device.type, enabled=False):
            product = (gram @ centered.to(gram.dtype)).to(variance.dtype)
        scale = grad_output * (4.0 * ctx.world_size / (len(centered) - 1))
        gradient = product.addcmul_(own, variance, value=-1).mul_(scale)
        return gradient.to(ctx.dtype), None, None


class _CovarianceForm(torch.autograd.Function):
    """By the covariance matrix of the latents, summed over processes."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, group: Group) -> Tensor:
        rows = len(latents) * world_size(group)
        centered = latents.to(statistics_dtype(latents.dtype))
        mean = all_reduce(centered.sum(dim=0), group) / rows
        factor = (centered - mean).to(_factor_dtype(latents.dtype))
        covariance = all_reduce(factor.T @ factor, group) / (rows - 1)
        covariance.fill_diagonal_(0.0)
        ctx.save_for_backward(latents, mean, covariance)
        ctx.scale = 4.0 * world_size(group) / (rows - 1)
        return covariance.square().sum(dtype=torch.float64).to(mean.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        loops.raise_on_double_backward("squared_covariance")
        latents, mean, covariance = ctx.saved_tensors
        factor = (latents.to(mean.dtype) - mean).to(covariance.dtype)
        with torch.autocast(latents.device.type, enabled=False):
            gradient = factor @ covariance
        return (gradient * (grad_output * ctx.scale)).to(latents.dtype), None


class _SparseGramForm(torch.autograd.Function):
    """By the Gram matrix, one row at a time, of the entries that are not zero."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, width: int, group: Group) -> Tensor:
        gathered, places, ctx.first = _gather_entries(values.detach(), indices, group)
        columns = sort_by_column(gathered, places, width)
        numbers, latents = gathered.numpy(), places.numpy()
        count = int(columns.offsets[-1])
        weights = numbers[columns.rows[:count], columns.entries[:count]].astype(np.float64)
        flat = latents.ravel()
        mean = np.bincount(flat, numbers.ravel(), width) / len(numbers)
        second = np.bincount(flat, gathered.double().square().flatten().numpy(), width)
        variance = (second - len(numbers) * mean**2) / (len(numbers) - 1)
        along = (numbers * mean[latents]).sum(axis=1) - mean @ mean / 2
        moments = mean, variance, along
        ctx.latents = loops.CenteredLatents(numbers, latents, columns, weights, *moments)
        squares = np.empty(len(values))
        in_parallel(loops.gram_squares, len(values), ctx.first, ctx.latents, squares)
        ctx.scale = 4.0 * world_size(group) / (len(numbers) - 1)
        ctx.shape, ctx.dtype = values.shape, values.dtype
        total = torch.tensor(squares.sum() / (len(numbers) - 1) ** 2, dtype=torch.float64)
        pairs = all_reduce(total, group) - float(variance @ variance)
        return pairs.to(statistics_dtype(values.dtype))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        loops.raise_on_double_backward("squared_covariance")
        gradient = torch.empty(ctx.shape, dtype=ctx.dtype)
        arguments = ctx.first, ctx.latents, ctx.scale * float(grad_output), gradient.numpy()
        in_parallel(loops.gram_products, len(gradient), *arguments)
        return gradient, None, None, None


def _gather_entries(values: Tensor, indices: Tensor, group: Group) -> tuple[Tensor, Tensor, int]:
    """Gather entries, padded to the room that the process with the most needs."""
    if group is None:
        return values.contiguous(), indices.contiguous(), 0
    rooms, _ = gather_rows(torch.tensor([[values.shape[1]]]), group)
    more = int(rooms.max()) - values.shape[1]
    gathered, first = gather_rows(functional.pad(values, (0, more)), group)
    places, _ = gather_rows(functional.pad(indices, (0, more)), group)
    return gathered, places, first
