"""Autoencoders with random weights in float64, and what a loss gives with its gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from palinka.autoencoders import Autoencoder

Gradients = dict[str, Tensor]


def randomized(autoencoder: Autoencoder) -> Autoencoder:
    autoencoder.double()
    for parameter in autoencoder.parameters():
        torch.nn.init.normal_(parameter)
    return autoencoder


def gradients(autoencoder: Autoencoder, loss: Callable[[], Tensor]) -> tuple[Tensor, Gradients]:
    """The loss, and the gradient of every parameter, zeros where none passes."""
    autoencoder.zero_grad()
    value = loss()
    value.backward()
    return value.detach(), {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in autoencoder.named_parameters()
    }


@pytest.fixture(scope="session")
def with_random_weights() -> Callable[[Autoencoder], Autoencoder]:
    return randomized


@pytest.fixture(scope="session")
def loss_and_gradients() -> Callable[..., tuple[Tensor, Gradients]]:
    return gradients
