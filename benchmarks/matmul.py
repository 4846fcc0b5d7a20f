"""Running one side at another precision of matrix products than the rest."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def at_precision(precision: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """The same call while PyTorch multiplies float32 matrices at a precision.

    `medium` sends them to oneDNN, which on some processors is twice as fast as MKL at the same
    accuracy, and on others rounds to bfloat16.

    Args:
        precision: Of `torch.set_float32_matmul_precision`.
        run: What to call.
    """

    def call() -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return run()
        finally:
            torch.set_float32_matmul_precision(before)

    return call


def product(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """A bare `x Wᵀ` into memory that is there already.

    Args:
        x: `(rows, width)`.
        weight: `(latents, width)`.
    """
    out = torch.empty(len(x), len(weight), dtype=x.dtype)
    return lambda: torch.mm(x, weight.T, out=out)
