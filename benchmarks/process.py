"""Process-wide settings of a fit, for one side of a comparison alone."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from palinka.autoencoders import Autoencoder
from palinka.language_models.cpu import (
    LARGEST,
    MALLOC_THRESHOLDS,
    matmul_precision,
    try_precisions,
    tune_cpu,
)

# What glibc's own threshold grows to; larger tensors it then takes from the system each time.
BY_DEFAULT = 32 << 20


class FitSettings:
    """The precision of products that a fit chooses, and the memory that it keeps.

    Args:
        autoencoder: What is trained.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        before = tune_cpu(torch.device("cpu"), autoencoder.input_dim * autoencoder.latent_dim)
        self.precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(before)
        _keep_below(BY_DEFAULT)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have them for the body of the `with`, and PyTorch's and glibc's own after it."""
        _keep_below(LARGEST)
        try:
            with matmul_precision(self.precision):
                yield
        finally:
            _keep_below(BY_DEFAULT)

    def given_to(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """The same call under these settings."""

        def call() -> Any:
            with self.at_work():
                return run()

        return call


def onednn_is_exact() -> bool:
    """Return whether oneDNN multiplies float32 without rounding to bfloat16, as with AMX."""
    return try_precisions()["medium"] < 1e-5


def at_precision(precision: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """The same call while PyTorch multiplies float32 matrices at a precision.

    `medium` sends them to oneDNN, which on some processors is faster than MKL at the same
    accuracy, and on others rounds to bfloat16.

    Args:
        precision: Of `torch.set_float32_matmul_precision`.
        run: What to call.
    """

    def call() -> Any:
        with matmul_precision(precision):
            return run()

    return call


def product(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """A bare `x Wᵀ` into allocated memory.

    Args:
        x: `(rows, width)`.
        weight: `(latents, width)`.
    """
    out = torch.empty(len(x), len(weight), dtype=x.dtype)
    return lambda: torch.mm(x, weight.T, out=out)


def _keep_below(size: int) -> None:
    """Let glibc keep freed memory of up to a size; other systems have no such setting."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(MALLOC_THRESHOLDS[0], size)
