"""Matrix products and memory on the CPU."""

import ctypes
import logging
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist

# M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc's <malloc.h>; bytes above any tensor of a step.
MALLOC_THRESHOLDS, LARGEST = (-3, -1), 1 << 30
# Shape of the trials: small, but as long a sum as a site's width.
ROWS, INPUTS, LATENTS = 64, 1024, 256
MIN_WEIGHTS = 1 << 20  # of a product that is worth the trial
MAX_ERROR_RATIO = 4.0  # of oneDNN, as a multiple of MKL's
PROCESSOR = Path("/proc/cpuinfo")
SLOW_BY_MKL = ("AuthenticAMD", "HygonGenuine")  # vendors for whom MKL takes a slow path
SLOW = 2.0  # time of a slow dtype's products as a multiple of float32's


def disable_malloc_trim() -> bool:
    """Keep freed memory in the process; return whether the allocator is glibc's and accepted.

    By default glibc returns every tensor of tens of megabytes to the system when it is freed. The
    first write to each page of the next one then faults, which can take longer than the step.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(name, LARGEST) for name in MALLOC_THRESHOLDS)


def tune_cpu(device: torch.device, weights: int, precision: str | None = None) -> str:
    """Reuse freed memory, and choose a library for float32 products, before work on the CPU.

    For a number of `weights` that are multiplied at every step; nothing is done on other devices. A
    precision that the user has set stays. All processes take the first one's choice, and a resumed
    run the `precision` of its beginning, so that it ends the same. Returns torch's precision
    before, for `torch.set_float32_matmul_precision` afterwards.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu":
        disable_malloc_trim()
    if device.type != "cpu" or weights < MIN_WEIGHTS or before != "highest":
        return before
    if precision not in ("highest", "medium"):
        precision, reason = select_matmul_backend()
        if dist.is_available() and dist.is_initialized():
            chosen = [precision]
            dist.broadcast_object_list(chosen, src=0)
            precision = chosen[0]
        logging.getLogger(__name__).debug(reason)
    torch.set_float32_matmul_precision(precision)
    return before


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Multiply float32 at one of torch's precisions for the body of the `with`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def select_matmul_backend() -> tuple[str, str]:
    """Choose torch's precision of float32 products by a trial, with a line that says why.

    It is `medium` (oneDNN) where MKL is slow and oneDNN as exact, otherwise `highest`.
    """
    processor = PROCESSOR.read_text(encoding="utf-8") if PROCESSOR.is_file() else ""
    slow = any(vendor in processor for vendor in SLOW_BY_MKL)
    errors = try_precisions()
    chosen = slow and errors["medium"] <= MAX_ERROR_RATIO * errors["highest"]
    return "medium" if chosen else "highest", (
        f"float32 products: by {'oneDNN' if chosen else 'the default of torch'};"
        f" the error of oneDNN is {errors['medium']:.1e} here, that of MKL {errors['highest']:.1e}"
    )


def try_precisions() -> dict[str, float]:
    """Relative error of a float32 product by precision, in some milliseconds."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(ROWS, INPUTS, generator=generator)
    right = torch.randn(LATENTS, INPUTS, generator=generator)
    exact = left.double() @ right.double().T
    errors = {}
    for precision in ("highest", "medium"):
        with matmul_precision(precision):
            product = left @ right.T
        errors[precision] = float((product.double() - exact).norm() / exact.norm())
    return errors


@cache
def slowdown(dtype: torch.dtype) -> float:
    """Time of products in a dtype on the CPU, as a multiple of float32's, by a short trial.

    Below 1 with AVX512_BF16 or AMX; 10 to 100 without products of 16-bit numbers, as in AVX2.
    """
    times = []
    for kind in (torch.float32, dtype):
        rows, weight = torch.ones(ROWS, INPUTS, dtype=kind), torch.ones(LATENTS, INPUTS, dtype=kind)
        step = timeit.Timer(lambda rows=rows, weight=weight: rows @ weight.T @ weight)  # type: ignore[misc]
        times.append(min(step.repeat(repeat=4, number=1)))
    return times[1] / times[0]


def slow_products(dtype: torch.dtype) -> str | None:
    """Warning of a dtype whose products are slow on the CPU, or None."""
    if (factor := slowdown(dtype)) <= SLOW:
        return None
    return (
        f"{str(dtype).removeprefix('torch.')} products take {factor:.0f} times as long as float32's"
        " on this processor; use trainer.precision 32-true and data.language_model.dtype float32"
    )
