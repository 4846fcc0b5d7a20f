"""The pass through an autoencoder with latents as lists, on a GPU.

Weights that are kept in more than autocast multiplies in are rounded once; all that is read many
times is read rounded, and all sums are in float32.
"""

import torch
from torch import Tensor

from palinka.kernels.listed import Primitives, listed
from palinka.kernels.precision import autocast_dtype
from palinka.kernels.sparse_latents import SparseLatents
from palinka.kernels.triton_columns import Columns
from palinka.kernels.triton_rows import sampled_products, weighted_rows
from palinka.kernels.triton_select import select_rows


def _select(x: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    return select_rows(x, weight, None if bias is None else bias.to(x.dtype), k)


def _dtype(x: Tensor) -> torch.dtype:
    return autocast_dtype(x) or x.dtype


TRITON = Primitives(_dtype, _select, weighted_rows, sampled_products, Columns)


def triton_pass(
    x: Tensor,
    encoder: Tensor,
    encoder_bias: Tensor | None,
    decoder: Tensor | None,
    decoder_bias: Tensor | None,
    subtracts_bias: bool,
    k: int,
) -> tuple[Tensor, SparseLatents]:
    """As `autoencode`, by lists; all on one GPU, weights in float32, bfloat16 or float16."""
    # Kernels are launched on the current GPU, which need not be that of the tensors.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return listed(TRITON, x, encoder, encoder_bias, decoder, decoder_bias, subtracts_bias, k)
