"""Autoencoders of random weights, one of each architecture that other libraries know."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from palinka.autoencoders import (
    Autoencoder,
    BatchTopKAutoencoder,
    GatedAutoencoder,
    InputScaling,
    JumpReLUAutoencoder,
    KSparseAutoencoder,
    MatryoshkaAutoencoder,
    ReLUAutoencoder,
    TopKAutoencoder,
)

WIDTH, LATENTS, ROWS, K = 24, 64, 200, 5
OURS: dict[str, Callable[[], Autoencoder]] = {
    "tied": lambda: KSparseAutoencoder(WIDTH, LATENTS, K),
    "tied with biases": lambda: KSparseAutoencoder(
        WIDTH, LATENTS, K, encoder_bias=True, decoder_bias=True
    ),
    "k-sparse": lambda: KSparseAutoencoder(
        WIDTH, LATENTS, K, tied=False, encoder_bias=True, decoder_bias=True
    ),
    "top-k": lambda: TopKAutoencoder(WIDTH, LATENTS, K),
    "top-k of x": lambda: TopKAutoencoder(WIDTH, LATENTS, K, subtract_decoder_bias=False),
    "batch top-k": lambda: BatchTopKAutoencoder(WIDTH, LATENTS, K),
    "matryoshka": lambda: MatryoshkaAutoencoder(WIDTH, LATENTS, K, group_fractions=(0.25, 0.75)),
    "relu": lambda: ReLUAutoencoder(WIDTH, LATENTS),
    "relu of x": lambda: ReLUAutoencoder(WIDTH, LATENTS, subtract_decoder_bias=False),
    "jumprelu": lambda: JumpReLUAutoencoder(WIDTH, LATENTS),
    "jumprelu of x": lambda: JumpReLUAutoencoder(WIDTH, LATENTS, subtract_decoder_bias=False),
    "gated": lambda: GatedAutoencoder(WIDTH, LATENTS),
    "gated of x": lambda: GatedAutoencoder(WIDTH, LATENTS, subtract_decoder_bias=False),
}


def randomize(module: Any) -> Any:
    """Random weights, biases and thresholds, the same each time."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                is_threshold = name.endswith("threshold") and "log" not in name
                tensor.copy_(noise.abs() / 2 if is_threshold else noise / 3)
    return module.eval()


@pytest.fixture
def randomized() -> Callable[[Any], Any]:
    return randomize


@pytest.fixture(params=list(OURS))
def ours(request: pytest.FixtureRequest) -> Any:
    return randomize(OURS[request.param]())


@pytest.fixture
def k_sparse() -> Any:
    return randomize(OURS["k-sparse"]())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(7)) * 2 + 1


@pytest.fixture
def scaling() -> InputScaling:
    scaling = InputScaling(WIDTH)
    scaling.set(torch.linspace(-1, 3, WIDTH), 0.37)
    return scaling


@pytest.fixture
def agree() -> Callable[[Tensor, Tensor], None]:
    def agree(first: Tensor, second: Tensor) -> None:
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
        assert (first != 0).any()

    return agree


@pytest.fixture
def change() -> Callable[..., None]:
    """Changes values of a JSON file."""

    def change(path: Path, **values: Any) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "folder"
