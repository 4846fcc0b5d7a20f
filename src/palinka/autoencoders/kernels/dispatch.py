"""Dispatch between dense and sparse kernels, compilation, threads and dtypes."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from itertools import pairwise

import torch
from torch import Tensor, nn

from palinka.errors import Loop, compiled_with

# Largest share of kept latents for which gathering rows beats multiplying matrices, and least
# number of values for which either matters; measured in `docs/performance.md`.
SPARSE_DENSITY = 0.08
SPARSE_ELEMENTS = 1 << 20
NUMBA_DTYPES = frozenset({torch.float32, torch.float64})
# A guess, not measured: GPUs multiply matrices faster, so it lies well below SPARSE_DENSITY.
TRITON_DENSITY = 1 / 64
TRITON_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
# The first GPUs that multiply bfloat16.
TRITON_CAPABILITY = (8, 0)
# Rows differ in cost, and other programs use the same cores.
CHUNKS_PER_THREAD = 4


def use_sparse(x: Tensor, weight: Tensor, k: int) -> bool:
    """Choose sparse kernels on the CPU for rows `x` that keep `k` of `len(weight)` latents."""
    large = len(x) * len(weight) >= SPARSE_ELEMENTS
    return large and k <= SPARSE_DENSITY * len(weight) and supports_numba(weight)


def use_triton(x: Tensor, weight: Tensor, k: int) -> bool:
    """Choose sparse kernels on a GPU, as `use_sparse` on the CPU."""
    large = len(x) * len(weight) >= SPARSE_ELEMENTS
    return large and k <= TRITON_DENSITY * len(weight) and supports_triton(weight)


def supports_numba(*tensors: Tensor, contiguous: bool = False) -> bool:
    """Check for plain CPU tensors that are all float32 or all float64."""
    return all(
        tensor.device.type == "cpu"
        and tensor.dtype in NUMBA_DTYPES
        and tensor.dtype == tensors[0].dtype
        and type(tensor) in (Tensor, nn.Parameter)
        and (tensor.is_contiguous() or not contiguous)
        for tensor in tensors
    )


def supports_triton(tensor: Tensor) -> bool:
    """Check for a plain tensor on a GPU, and for the flag that enables Triton kernels."""
    return (
        tensor.device.type == "cuda"
        and tensor.dtype in TRITON_DTYPES
        and type(tensor) in (Tensor, nn.Parameter)
        and _has_triton(tensor.device.index)
    )


@cache
def _has_triton(device: int) -> bool:
    # Off by default: the kernels have only run in Triton's interpreter.
    return (
        os.environ.get("PALINKA_TRITON") == "1"
        and find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= TRITON_CAPABILITY
    )


def compiled(*, sums: bool = False, inline: bool = False) -> Callable[[Loop], Loop]:
    """Compile a loop when it is first called with each type of arguments.

    `sums` may be reordered, so that they can be vectorized; NaN and infinity propagate as without
    it. `inline` is for a callee, which, read from the cache, may be rounded otherwise than one
    compiled with its caller.
    """
    fastmath = {"reassoc", "contract", "nsz"} if sums else False
    inlined = "always" if inline else "never"
    return compiled_with(error_model="numpy", fastmath=fastmath, inline=inlined)


def in_parallel(loop: Callable[..., object], count: int, *arguments: object) -> None:
    """Call `loop(start, stop, *arguments)` on several threads, over ranges of `count`."""
    threads = torch.get_num_threads()
    if threads == 1 or count < threads:
        loop(0, count, *arguments)
        return
    chunks = min(count, threads * CHUNKS_PER_THREAD)
    ends = [chunk * count // chunks for chunk in range(chunks + 1)]
    # A pool does not survive a fork.
    pool = _pool(os.getpid(), threads)
    for done in [pool.submit(loop, start, stop, *arguments) for start, stop in pairwise(ends)]:
        done.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="palinka-kernels")


def raise_on_double_backward(function: str) -> None:
    """Raise in a backward pass with `create_graph`, whose graph would lack this function."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{function} is differentiable once: use the plain form")


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of means, variances and losses: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Dtype of matrix products with `x` under autocast; None outside, and for float64."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)
