"""Hand-written fast paths, each beside the plain definition that it must equal."""

from palinka.autoencoders.kernels.autoencode import Weights, autoencode, autoencode_plain
from palinka.autoencoders.kernels.decorrelation import (
    sparse_squared_covariance,
    sparse_squared_covariance_plain,
    squared_covariance,
    squared_covariance_plain,
)
from palinka.autoencoders.kernels.topk import (
    Latents,
    SparseLatents,
    batch_threshold,
    batch_threshold_plain,
    keep_top_k,
    keep_top_k_plain,
    kth_largest,
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
