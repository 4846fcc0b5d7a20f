"""Hand-written fast paths, each beside the plain definition that it must equal."""

from palinka.kernels.autoencode import Weights, autoencode, autoencode_plain
from palinka.kernels.batch_topk import batch_threshold, batch_threshold_plain
from palinka.kernels.decorrelation import squared_covariance, squared_covariance_plain
from palinka.kernels.sparse_decorrelation import (
    sparse_squared_covariance,
    sparse_squared_covariance_plain,
)
from palinka.kernels.sparse_latents import Latents, SparseLatents
from palinka.kernels.topk import keep_top_k, keep_top_k_plain, kth_largest
from palinka.kernels.unit_norm import (
    normalize_rows_,
    normalize_rows_plain,
    project_gradient_,
    project_gradient_plain,
)

__all__ = [
    "Latents",
    "SparseLatents",
    "Weights",
    "autoencode",
    "autoencode_plain",
    "batch_threshold",
    "batch_threshold_plain",
    "keep_top_k",
    "keep_top_k_plain",
    "kth_largest",
    "normalize_rows_",
    "normalize_rows_plain",
    "project_gradient_",
    "project_gradient_plain",
    "sparse_squared_covariance",
    "sparse_squared_covariance_plain",
    "squared_covariance",
    "squared_covariance_plain",
]
