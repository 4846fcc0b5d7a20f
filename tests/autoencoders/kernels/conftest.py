from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from palinka.autoencoders.kernels.sparse import SparseLatents, Weights


@pytest.fixture(scope="session")
def inputs() -> Callable[..., tuple[Tensor, Weights]]:
    """Random rows and weights; matrices that are not contiguous if `turned`."""

    def inputs(
        *sizes: int, tied: bool, biases: bool, turned: bool = False, **options: Any
    ) -> tuple[Tensor, Weights]:
        def leaf(*shape: int) -> Tensor:
            made = torch.randn(shape, **{"dtype": torch.float64, **options})
            return (made.T.contiguous().T if turned and made.ndim == 2 else made).requires_grad_()

        rows, d, n = sizes
        decoder = None if tied else leaf(n, d)
        bias, decoder_bias = (leaf(n), leaf(d)) if biases else (None, None)
        return leaf(rows, d), Weights(leaf(n, d), bias, decoder, decoder_bias, biases)

    return inputs


@pytest.fixture(scope="session")
def everything() -> Callable[..., list[Tensor]]:
    """Outputs, and the gradients of all inputs, with a penalty on the latents."""

    def everything(form: Any, x: Tensor, weights: Weights, k: int) -> list[Tensor]:
        made, latents = form(x, weights, k)
        dense = latents.dense() if isinstance(latents, SparseLatents) else latents
        generator = torch.Generator().manual_seed(5)
        of_made, of_latents = (
            torch.randn(t.shape, dtype=torch.float64, generator=generator).to(t)
            for t in (made, dense)
        )
        given = [t for t in (x, *weights[:4]) if t is not None]
        loss = (made * of_made).sum() + (dense.square() * of_latents).sum()
        return [made, dense, *torch.autograd.grad(loss, given)]

    return everything
