"""Which library multiplies float32 matrices on the CPU.

torch hands products to MKL, or, where `torch.set_float32_matmul_precision("medium")` allows lower
precision, to oneDNN. On AMD's processors, where MKL takes a slow path, oneDNN is up to three times
as fast and just as exact; on processors with bfloat16 products of their own it may take the
permission and round. What was tried says whether it does. Speed is not tried: a run would depend
on what else the machine was doing when it began.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

# Shape of the trial: small, but as long a sum as a site's width.
ROWS, INPUTS, LATENTS = 64, 1024, 256
# oneDNN is taken if its error is no more than so many times MKL's.
LESS_EXACT = 4.0
PROCESSOR = Path("/proc/cpuinfo")
# Of the makers on whose processors MKL takes a slow path.
SLOW_BY_MKL = ("AuthenticAMD", "HygonGenuine")


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


def _relative(product: Tensor, exact: Tensor) -> float:
    return float((product.double() - exact).norm() / exact.norm())
