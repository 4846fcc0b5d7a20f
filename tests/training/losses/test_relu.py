from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palinka.autoencoders import ReLUAutoencoder
from palinka.training.losses import StepContext, loss_terms


def transcription(sae: ReLUAutoencoder, x: Tensor, target: Tensor, weight: float) -> Tensor:
    """Row by row, the paper's loss with the width's mean in place of its sum."""
    total = torch.zeros((), dtype=x.dtype)
    for row, wanted in zip(x, target, strict=True):
        f = torch.relu(sae.encoder.weight @ (row - sae.decoder_bias) + sae.encoder.bias)
        given = f @ sae.decoder_weight + sae.decoder_bias
        total = total + ((given - wanted) ** 2).sum() / len(wanted)
        for j in range(len(f)):
            total = total + weight * f[j] * torch.sqrt((sae.decoder_weight[j] ** 2).sum())
    return total / len(x)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 1000))
def test_loss_and_gradients_are_the_papers(
    with_random_weights: Callable, loss_and_gradients: Callable,
    input_dim: int, latent_dim: int, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    sae = with_random_weights(ReLUAutoencoder(input_dim, latent_dim))
    x, target = torch.randn(2, 5, input_dim, dtype=torch.float64)

    def ours() -> Tensor:
        found = loss_terms(sae, StepContext(x, target))
        assert found.auxiliary is None
        return found.reconstruction + 0.3 * found.sparsity

    value, gradients = loss_and_gradients(sae, ours)
    expected, by_hand = loss_and_gradients(sae, lambda: transcription(sae, x, target, 0.3))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradients, by_hand)


def test_gradients_are_the_derivatives() -> None:
    torch.manual_seed(0)
    sae = ReLUAutoencoder(3, 4).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    names = [name for name, _ in Losses(sae).named_parameters()]

    def loss(*parameters: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(Losses(sae), named, x)

    assert torch.autograd.gradcheck(loss, tuple(sae.parameters()))


class Losses(torch.nn.Module):
    """The loss as a function of the parameters."""

    def __init__(self, sae: ReLUAutoencoder) -> None:
        super().__init__()
        self.sae = sae

    def forward(self, x: Tensor) -> Tensor:
        found = loss_terms(self.sae, StepContext(x, x))
        return found.reconstruction + 0.3 * found.sparsity


def test_with_directions_of_norm_one_the_norms_are_left_out() -> None:
    torch.manual_seed(0)
    sae = ReLUAutoencoder(4, unit_norm=True)
    x = torch.randn(6, 4)
    sparsity = loss_terms(sae, StepContext(x, x)).sparsity
    torch.testing.assert_close(sparsity, sae.encode(x).sum(dim=1).mean())
    free = ReLUAutoencoder(4)
    free.load_state_dict(sae.state_dict())
    torch.testing.assert_close(loss_terms(free, StepContext(x, x)).sparsity, sparsity)


def test_low_precision_is_summed_in_float32() -> None:
    torch.manual_seed(0)
    sae = ReLUAutoencoder(16, 512, unit_norm=True)
    x = torch.randn(300, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_terms(sae, StepContext(x, x))
    assert found.sparsity.dtype == found.reconstruction.dtype == torch.float32
    torch.testing.assert_close(
        found.sparsity, loss_terms(sae, StepContext(x, x)).sparsity, rtol=0.01, atol=0
    )
