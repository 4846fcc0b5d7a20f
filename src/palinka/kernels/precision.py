"""Dtypes under low precision: of products, of statistics, and of state that accumulates."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


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


class FullPrecisionState(nn.Module):
    """Module whose buffers and metric states no conversion narrows; its parameters it does.

    `to(torch.bfloat16)`, which Lightning's `bf16-true` calls, would otherwise leave a sum of
    thousands, a running mean or a count with three digits. Devices and wider dtypes are followed.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        trained = {id(t) for p in self.parameters() for t in (p, p.grad)}

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            dtype = torch.promote_types(tensor.dtype, new.dtype)
            whole = id(tensor) in trained or new.dtype == dtype
            return new if whole else tensor.to(new.device, dtype)

        return super()._apply(moved, *args, **kwargs)  # type: ignore[no-untyped-call]
