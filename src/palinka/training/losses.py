"""What losses are made of, unweighted."""

import torch
import torch.distributed as dist
from torch import Tensor

from palinka.kernels import sparse_squared_covariance, squared_covariance
from palinka.kernels.collectives import gather_rows, processes, sum_of_parts
from palinka.kernels.precision import statistics_dtype
from palinka.kernels.sparse_latents import Latents, SparseLatents


def reconstruction_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean over all elements of the squared error.

    Args:
        reconstruction: `(…, input_dim)`.
        target: Of the same shape.

    Returns:
        A scalar, in float32 or better.
    """
    dtype = statistics_dtype(target.dtype)
    return (reconstruction.to(dtype) - target.to(dtype)).square().mean()


def normalized_loss(
    reconstruction: Tensor, target: Tensor, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Mean squared error as a fraction of that of always giving the mean row of the batch.

    Args:
        reconstruction: `(…, input_dim)`.
        target: Of the same shape.
        group: Processes whose rows count as one batch; each must hold equally many.

    Returns:
        A scalar, in float32 or better. The mean over the processes is that of the batch.
    """
    return reconstruction_loss(reconstruction, target) / spread(target, group)


@torch.no_grad()
def spread(target: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Mean squared error of always giving the mean row of the batch; 1 where all rows are equal.

    Args:
        target: `(…, input_dim)`.
        group: Processes whose rows count as one batch; each must hold equally many.

    Returns:
        A scalar, in float32 or better, without a graph.
    """
    rows = target.reshape(-1, target.shape[-1]).to(statistics_dtype(target.dtype))
    mean = rows.mean(dim=0)
    within = (rows - mean).square().mean()
    parts, _ = gather_rows(torch.cat([mean, within[None]])[None], group)
    means, within = parts[:, :-1], parts[:, -1].mean()
    error = within + (means - means.mean(dim=0)).square().mean()
    return error.where(error != 0, 1.0)


def sparsity_loss(latents: Latents, slices: dist.ProcessGroup | None = None) -> Tensor:
    """Mean over all elements of the absolute value.

    Args:
        latents: `(…, latent_dim)`.
        slices: Processes that hold the other latents of the same rows, as many each.

    Returns:
        A scalar, in float32 or better.
    """
    dtype = statistics_dtype(latents.dtype)
    if isinstance(latents, SparseLatents):
        return latents.values.abs().sum(dtype=dtype) / (len(latents) * latents.width)
    mean = latents.abs().mean(dtype=dtype)
    return sum_of_parts(mean / processes(slices), slices)


def decorrelation_loss(
    latents: Latents,
    group: dist.ProcessGroup | None = None,
    slices: dist.ProcessGroup | None = None,
) -> Tensor:
    """Sum over all ordered pairs of different latents of their squared unbiased covariance.

    Args:
        latents: `(…, latent_dim)`; every position but the last dimension's is one observation.
        group: Processes whose latents count as one batch, with gradients for data-parallel
            training, which averages them; every process must hold equally many.
        slices: Processes that hold the other latents of the same rows.

    Returns:
        A scalar, in float32 or better.

    Raises:
        InputError: If there are fewer than two observations.
    """
    if isinstance(latents, SparseLatents):
        return sparse_squared_covariance(latents, group)
    return squared_covariance(latents.reshape(-1, latents.shape[-1]), group, slices)
