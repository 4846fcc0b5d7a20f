"""Fast paths of autoencoders, each beside the plain definition that it must equal."""

from palinka.autoencoders.kernels.autoencode import autoencode
from palinka.autoencoders.kernels.decorrelation import squared_covariance, squared_covariance_plain
from palinka.autoencoders.kernels.sparse import Weights
from palinka.autoencoders.kernels.topk import (
    Latents,
    SparseLatents,
    batch_threshold,
    keep_top_k,
    kth_largest,
    normalize_rows_,
    project_gradient_,
)

__all__ = [
    "Latents",
    "SparseLatents",
    "Weights",
    "autoencode",
    "batch_threshold",
    "keep_top_k",
    "kth_largest",
    "normalize_rows_",
    "project_gradient_",
    "squared_covariance",
    "squared_covariance_plain",
]
