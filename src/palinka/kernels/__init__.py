"""Hand-written fast paths, each beside the plain definition that it must equal."""

from palinka.kernels.batch_topk import batch_threshold, batch_threshold_plain
from palinka.kernels.decorrelation import squared_covariance, squared_covariance_plain
from palinka.kernels.topk import keep_top_k, keep_top_k_plain, kth_largest

__all__ = [
    "batch_threshold",
    "batch_threshold_plain",
    "keep_top_k",
    "keep_top_k_plain",
    "kth_largest",
    "squared_covariance",
    "squared_covariance_plain",
]
