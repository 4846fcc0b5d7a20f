"""Which library multiplies float32 matrices on the CPU, by trying both.

torch hands products to MKL, or, where `torch.set_float32_matmul_precision("medium")` allows lower
precision, to oneDNN. On processors that MKL knows little of, oneDNN is faster and just as exact;
on others it takes the permission and rounds to bfloat16.
"""

import time
from typing import NamedTuple

import torch
from torch import Tensor

# Shape of the trial: small, but long enough to be told from noise.
ROWS, INPUTS, LATENTS = 256, 512, 2048
ROUNDS = 5
# oneDNN is taken if it is so much faster, and its error no more than so many times MKL's: clearly
# faster, so that the same run on the same machine takes the same again.
FASTER, LESS_EXACT = 1.3, 4.0


class Trial(NamedTuple):
    """What a product of float32 matrices takes at a precision."""

    seconds: float
    """Of processor time; the least of several."""
    error: float
    """Norm of the error as a fraction of that of the product."""


def choose_precision(trials: dict[str, Trial]) -> str:
    """`medium` where that is faster and no less exact, or else `highest`."""
    highest, medium = trials["highest"], trials["medium"]
    faster = medium.seconds * FASTER < highest.seconds
    return "medium" if faster and medium.error <= LESS_EXACT * highest.error else "highest"


def try_precisions() -> dict[str, Trial]:
    """Multiply the same matrices at `highest` and at `medium`, which takes some milliseconds.

    torch's precision is left as it was.
    """
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(ROWS, INPUTS, generator=generator)
    right = torch.randn(LATENTS, INPUTS, generator=generator)
    exact = left.double() @ right.double().T
    seconds = {"highest": float("inf"), "medium": float("inf")}
    errors = {}
    try:
        for _ in range(ROUNDS):
            for precision in seconds:
                torch.set_float32_matmul_precision(precision)
                # Other programs' share of the processor is not counted.
                start = time.process_time()
                product = left @ right.T
                seconds[precision] = min(seconds[precision], time.process_time() - start)
                errors[precision] = _relative(product, exact)
    finally:
        torch.set_float32_matmul_precision(before)
    return {name: Trial(seconds[name], errors[name]) for name in seconds}


def _relative(product: Tensor, exact: Tensor) -> float:
    return float((product.double() - exact).norm() / exact.norm())
