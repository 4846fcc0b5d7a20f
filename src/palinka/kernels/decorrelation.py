"""The sum of the squared covariances of different latents, without the covariance matrix.

For `B` rows of `L` latents, centered to `Zc`, the covariance `Zcᵀ Zc / (B-1)` is `L x L` and the
Gram matrix `Zc Zcᵀ / (B-1)` is `B x B`. Both have the same Frobenius norm, so

    sum over i != j of cov²_ij = ‖Zc Zcᵀ‖²_F / (B-1)² - sum over j of var_j²

and the smaller of the two matrices is the one to compute. Both backward passes are written by
hand: the gradient is `4 (Zc Zcᵀ) Zc / (B-1)² - 4 Zc var / (B-1)`, and as the columns of `Zc` sum
to zero, those of the gradient do too, so that centering needs no backward pass of its own.

Under a process group the rows of all processes count as one batch. Each process computes the
value of that batch and the gradient of its own rows times the number of processes: data-parallel
training averages gradients over processes, which gives the gradient of the whole batch.

The latents may be divided over processes, too. The Gram matrix is then the sum of those of the
slices, so that neither latents nor covariances of latents have to be moved; with it, the gradient
of a slice needs nothing of the others.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from palinka.errors import InputError
from palinka.kernels.centering import center, subtract_variance
from palinka.kernels.collectives import gather_rows, processes, sum_over
from palinka.kernels.once import refuse_second_derivative
from palinka.kernels.precision import factor_dtype, statistics_dtype


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
    rows = len(latents) * processes(group)
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
        ctx.first, ctx.processes, ctx.dtype = first, processes(group), latents.dtype
        total = sum_over(gram.square().sum(dtype=torch.float64), group)
        diagonal = sum_over(variance.square().sum(dtype=torch.float64), slices)
        return (total - diagonal).to(centered.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative("squared_covariance")
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
        rows = len(latents) * processes(group)
        centered = latents.to(statistics_dtype(latents.dtype))
        mean = sum_over(centered.sum(dim=0), group) / rows
        factor = (centered - mean).to(factor_dtype(latents.dtype))
        covariance = sum_over(factor.T @ factor, group) / (rows - 1)
        covariance.fill_diagonal_(0.0)
        ctx.save_for_backward(latents, mean, covariance)
        ctx.scale = 4.0 * processes(group) / (rows - 1)
        return covariance.square().sum(dtype=torch.float64).to(mean.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative("squared_covariance")
        latents, mean, covariance = ctx.saved_tensors
        factor = (latents.to(mean.dtype) - mean).to(covariance.dtype)
        with torch.autocast(latents.device.type, enabled=False):
            gradient = factor @ covariance
        return (gradient * (grad_output * ctx.scale)).to(latents.dtype), None
