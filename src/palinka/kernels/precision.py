"""In which dtype the kernels and losses compute what a low-precision run hands them."""

import torch
from torch import Tensor


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """For means, variances and losses: never less than float32."""
    return torch.promote_types(dtype, torch.float32)


def factor_dtype(dtype: torch.dtype) -> torch.dtype:
    """For matrix products: bfloat16 stays, but float16 products of thousands overflow."""
    return dtype if dtype == torch.bfloat16 else statistics_dtype(dtype)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of matrix products with `x` where autocast chooses one; None where it does not."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)
