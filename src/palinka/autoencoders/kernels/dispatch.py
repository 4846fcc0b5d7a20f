"""Dispatch between dense and sparse kernels."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from numba import njit
from torch import Tensor, nn

# The largest share of kept latents for which gathering rows beats multiplying matrices, and the
# least work for which either matters. `docs/performance.md` has the sweep.
SPARSE_DENSITY = 0.08
SPARSE_ELEMENTS = 1 << 20
LOOP_DTYPES = frozenset({torch.float32, torch.float64})
# On GPUs, where matrix products are faster still and nothing has been measured: well below.
TRITON_DENSITY = 1 / 64
TRITON_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
# The first that multiply bfloat16.
TRITON_CAPABILITY = (8, 0)


def use_sparse(rows: int, width: int, k: int, weight: torch.Tensor) -> bool:
    """Whether to keep the `k` largest of `width` latents of each row as a list.

    Args:
        rows: Rows of the batch.
        width: Latents.
        k: How many of them a row keeps.
        weight: What they are computed with.
    """
    few = k <= SPARSE_DENSITY * width and rows * width >= SPARSE_ELEMENTS
    return few and supports_numba(weight)


def supports_numba(*tensors: torch.Tensor) -> bool:
    """Whether compiled loops can work on tensors: plain ones of the CPU, in one full precision."""
    return all(
        tensor.device.type == "cpu"
        and tensor.dtype in LOOP_DTYPES
        and tensor.dtype == tensors[0].dtype
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        for tensor in tensors
    )


def use_triton(rows: int, width: int, k: int, weight: torch.Tensor) -> bool:
    """As `use_sparse`, for the lists that Triton's kernels make."""
    few = k <= TRITON_DENSITY * width and rows * width >= SPARSE_ELEMENTS
    return few and supports_triton(weight)


def supports_triton(tensor: torch.Tensor) -> bool:
    """Whether Triton's kernels can work on a tensor: a plain one of a GPU that is recent enough."""
    return (
        tensor.device.type == "cuda"
        and tensor.dtype in TRITON_DTYPES
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and _has_triton(tensor.device.index)
    )


@cache
def _has_triton(device: int) -> bool:
    # Whoever trains on a GPU asks for them: they have never run on one.
    return (
        os.environ.get("PALINKA_TRITON") == "1"
        and find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= TRITON_CAPABILITY
    )


Loop = TypeVar("Loop", bound=Callable[..., object])

# Pieces per thread: rows differ in what they cost, and other programs use the same cores.
CHUNKS_PER_THREAD = 4


def compiled(*, sums: bool = False) -> Callable[[Loop], Loop]:
    """Compile a loop when it is first called with each type of arguments.

    The machine code is kept beside the source, or else in the user's cache folder, or where
    `NUMBA_CACHE_DIR` says. It lets other threads run meanwhile.

    Args:
        sums: Whether a sum may be taken in another order than it is written in, which a
            processor needs to take several terms at once. NaN and infinity stay what they are.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    if sums:
        options["fastmath"] = {"reassoc", "contract", "nsz"}

    def compile_it(loop: Loop) -> Loop:
        try:
            return cast("Loop", njit(cache=True, **options)(loop))
        except RuntimeError:  # numba found no folder that it may write to
            return cast("Loop", njit(**options)(loop))

    return compile_it


def in_parallel(loop: Callable[..., object], count: int, *arguments: object) -> None:
    """Call `loop(start, stop, *arguments)` for ranges that make up `0 … count`, several at once.

    Args:
        loop: A compiled loop.
        count: How many rows there are.
        arguments: What else it takes.
    """
    threads = torch.get_num_threads()
    if threads == 1 or count < threads:
        loop(0, count, *arguments)
        return
    pieces = min(count, threads * CHUNKS_PER_THREAD)
    ends = [piece * count // pieces for piece in range(pieces + 1)]
    # A pool does not outlive a fork.
    pool = _pool(os.getpid(), threads)
    for done in [pool.submit(loop, start, stop, *arguments) for start, stop in pairwise(ends)]:
        done.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="palinka-kernels")


def raise_on_double_backward(function: str) -> None:
    """Where a graph of the gradient is wanted, it would silently lack this function's part.

    Raises:
        RuntimeError: In a backward pass with `create_graph`.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{function} is differentiable once: use the plain form")


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
