"""In which dtype the kernels and losses compute what a low-precision run hands them."""

import torch


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """For means, variances and losses: never less than float32."""
    return torch.promote_types(dtype, torch.float32)


def factor_dtype(dtype: torch.dtype) -> torch.dtype:
    """For matrix products: bfloat16 stays, but float16 products of thousands overflow."""
    return dtype if dtype == torch.bfloat16 else statistics_dtype(dtype)
