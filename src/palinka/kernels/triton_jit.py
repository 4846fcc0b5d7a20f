"""What all Triton kernels share; imported only where there is a tensor of a GPU.

Kernels compare values by keys, as the compiled loops of the CPU do: a float that is not negative
is ordered as the integer with the same bits. What is negative has key 0, and NaN the largest.
"""

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function for the GPU when it is first called with each type of arguments."""
    return triton.jit(function)


@kernel
def keys_of(values):  # type: ignore[no-untyped-def]
    """Keys, int32, of values in float32."""
    positive = tl.where(values > 0, values, 0.0)
    return tl.where(values != values, 0x7FC00000, positive.to(tl.int32, bitcast=True))


@kernel
def keep_largest(keys, k):  # type: ignore[no-untyped-def]
    """Which of a vector of keys, all that tie included, are the `k` largest and are not 0.

    By bisection. Where there is a NaN, only the first is kept: no more is needed for it to be
    seen downstream.

    Returns:
        Which are kept, and how many of them come up to and with each.
    """
    top = tl.max(keys, axis=0)
    low, high = tl.where(top == 0x7FC00000, top, 1), top
    while low < high:
        middle = low + (high - low + 1) // 2
        count = tl.sum((keys >= middle).to(tl.int32), axis=0)
        # With exactly k above it, no more need be known of where the k-th is.
        high = tl.where(count >= k, tl.where(count == k, middle, high), middle - 1)
        low = tl.where(count >= k, middle, low)
    kept = keys >= low
    place = tl.cumsum(kept.to(tl.int32), axis=0)
    return kept & (place <= tl.where(top == 0x7FC00000, 1, place)), place
