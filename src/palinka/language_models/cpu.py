"""Matrix products and memory on the CPU."""

import ctypes
import sys
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

# Of glibc's <malloc.h>.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
# Above any tensor that is made and freed at every step.
LARGEST = 1 << 30


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory of the CPU, instead of giving it back to the system.

    By default glibc asks the system for every tensor of tens of megabytes, and gives it back when
    it is freed. The first write to each of its pages then waits for the system, at every step
    again: on a virtual machine that can take longer than what is computed. A process keeps its
    largest size from then on.

    Returns:
        Whether the system's allocator could be told; those that cannot are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "gnu_get_libc_version"):
        return False
    told = [library.mallopt(name, LARGEST) for name in (MMAP_THRESHOLD, TRIM_THRESHOLD)]
    return all(told)


# Shape of the trial: small, but as long a sum as a site's width.
ROWS, INPUTS, LATENTS = 64, 1024, 256
# oneDNN is taken if its error is no more than so many times MKL's.
LESS_EXACT = 4.0
PROCESSOR = Path("/proc/cpuinfo")
# Of the makers on whose processors MKL takes a slow path.
SLOW_BY_MKL = ("AuthenticAMD", "HygonGenuine")
# A dtype is slow whose products take more than so many times as long as float32's.
SLOW = 2.0


def choose_products() -> tuple[str, str]:
    """Try both and choose.

    Returns:
        torch's precision of float32 products, and a line that says why.
    """
    errors = try_precisions()
    chosen = choose_precision(errors)
    return chosen, (
        f"float32 products: by {'oneDNN' if chosen == 'medium' else 'what torch takes by itself'};"
        f" the error of oneDNN is {errors['medium']:.1e} here, that of MKL {errors['highest']:.1e}"
    )


# A product with fewer weights is not worth the trial.
MIN_WEIGHTS = 1 << 20


def tune_cpu(device: torch.device, weights: int, precision: str | None = None) -> str:
    """Reuse freed memory, and choose a library for float32 products, before work on the CPU.

    A precision that the user has set stays. All processes take the first one's choice, and a
    resumed run that of its beginning, so that it ends the same.

    Args:
        device: Device of the work; nothing is done on other devices.
        weights: Number of weights that are multiplied at every step.
        precision: torch's precision with which a resumed run began.

    Returns:
        torch's precision before, for `torch.set_float32_matmul_precision` afterwards.
    """
    from lightning.pytorch.utilities import rank_zero_info  # slow; reading a model needs none

    before = torch.get_float32_matmul_precision()
    if device.type != "cpu":
        return before
    keep_freed_memory()
    if weights < MIN_WEIGHTS or before != "highest":
        return before
    if precision not in ("highest", "medium"):
        precision, reason = choose_products()
        if dist.is_available() and dist.is_initialized():
            chosen = [precision]
            dist.broadcast_object_list(chosen, src=0)
            precision = chosen[0]
        rank_zero_info(reason)
    torch.set_float32_matmul_precision(precision)
    return before


@contextmanager
def products_at(precision: str) -> Iterator[None]:
    """Multiply float32 at one of torch's precisions for the body of the `with`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def choose_precision(errors: dict[str, float]) -> str:
    """`medium` where MKL is slow and oneDNN no less exact, or else `highest`.

    Args:
        errors: What `try_precisions` has found.
    """
    exact = errors["medium"] <= LESS_EXACT * errors["highest"]
    return "medium" if exact and mkl_is_slow() else "highest"


def mkl_is_slow() -> bool:
    """Whether the processor is of a maker whom MKL does not know; False where nobody tells."""
    try:
        described = PROCESSOR.read_text(encoding="utf-8")
    except OSError:
        return False
    return any(maker in described for maker in SLOW_BY_MKL)


def try_precisions() -> dict[str, float]:
    """The error of the same product at `highest` and at `medium`, which takes some milliseconds.

    torch's precision is left as it was.

    Returns:
        The norm of the error as a fraction of that of the product, by precision.
    """
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(ROWS, INPUTS, generator=generator)
    right = torch.randn(LATENTS, INPUTS, generator=generator)
    exact = left.double() @ right.double().T
    errors = {}
    for precision in ("highest", "medium"):
        with products_at(precision):
            errors[precision] = _relative(left @ right.T, exact)
    return errors


@cache
def slowdown(dtype: torch.dtype) -> float:
    """Time of products in a dtype on the CPU, as a multiple of float32's; a trial of milliseconds.

    Processors without products of 16-bit numbers, such as those with AVX2 alone, compute them one
    by one: there it is 10 to 100, where with AVX512_BF16 or AMX it is below 1.
    """
    times = []
    for kind in (torch.float32, dtype):
        rows, weight = torch.ones(ROWS, INPUTS, dtype=kind), torch.ones(LATENTS, INPUTS, dtype=kind)
        step = timeit.Timer(lambda rows=rows, weight=weight: rows @ weight.T @ weight)  # type: ignore[misc]
        times.append(min(step.repeat(repeat=4, number=1)))
    return times[1] / times[0]


def slow_products(dtype: torch.dtype) -> str | None:
    """A line that warns of products in a dtype on the CPU where they are slow, or None."""
    factor = slowdown(dtype)
    if factor <= SLOW:
        return None
    name = str(dtype).removeprefix("torch.")
    return (
        f"{name} products take {factor:.0f} times as long as float32's on this processor, which"
        " has none of its own: use float32 (trainer.precision 32-true, data.language_model.dtype"
        " float32)"
    )


def _relative(product: Tensor, exact: Tensor) -> float:
    return float((product.double() - exact).norm() / exact.norm())
