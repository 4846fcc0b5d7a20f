"""Held to a plain transcription of the pseudo-code in the paper's appendix."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palinka.autoencoders import JumpReLUAutoencoder
from palinka.training.losses import StepContext, loss_terms


def rectangle(x: Tensor) -> Tensor:
    return ((x > -0.5) & (x < 0.5)).to(x.dtype)


def with_pseudo_derivative(value: Tensor, slope: Tensor, threshold: Tensor) -> Tensor:
    """`value`, whose derivative by the threshold is `slope`."""
    return value + slope.detach() * (threshold - threshold.detach())


def transcription(
    sae: JumpReLUAutoencoder, x: Tensor, target: Tensor, weight: float, bandwidth: float
) -> Tensor:
    threshold = torch.exp(sae.log_threshold)
    fixed = threshold.detach()
    pre = (x - sae.decoder_bias) @ sae.encoder.weight.T + sae.encoder.bias
    kernel = rectangle((pre - fixed) / bandwidth)
    magnitudes = with_pseudo_derivative(
        pre * (pre > fixed), -(fixed / bandwidth) * kernel, threshold
    )
    reconstruction = magnitudes @ sae.decoder_weight + sae.decoder_bias
    if sae.sparsity == "l0":
        above = (pre > fixed).to(pre.dtype)
        count = with_pseudo_derivative(above, -(1.0 / bandwidth) * kernel, threshold)
    else:
        norms = sae.decoder_weight.norm(dim=1)
        count = torch.tanh(sae.tanh_scale * magnitudes * (1.0 if sae.unit_norm else norms))
    error = ((reconstruction - target) ** 2).sum(dim=-1) / x.shape[-1]
    return (error + weight * count.sum(dim=-1)).mean()


@pytest.mark.parametrize("sparsity", ["l0", "tanh"])
@pytest.mark.parametrize("unit_norm", [True, False])
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.floats(0.05, 2.0), st.integers(0, 1000))
def test_loss_and_gradients_are_the_papers(
    with_random_weights: Callable, loss_and_gradients: Callable, sparsity: Any, unit_norm: bool,
    input_dim: int, latent_dim: int, bandwidth: float, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    sae = with_random_weights(
        JumpReLUAutoencoder(
            input_dim, latent_dim, bandwidth=bandwidth, sparsity=sparsity, unit_norm=unit_norm,
            tanh_scale=1.5,
        )
    )  # fmt: skip
    x, target = torch.randn(2, 5, input_dim, dtype=torch.float64)

    def ours() -> Tensor:
        found = loss_terms(sae, StepContext(x, target))
        assert found.auxiliary is None
        return found.reconstruction + 0.3 * found.sparsity

    value, gradients = loss_and_gradients(sae, ours)
    expected, by_hand = loss_and_gradients(
        sae, lambda: transcription(sae, x, target, 0.3, bandwidth)
    )
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradients, by_hand)


def test_the_sparsity_is_the_number_of_active_latents_and_moves_the_thresholds_alone(
    loss_and_gradients: Callable,
) -> None:
    torch.manual_seed(0)
    sae, x = JumpReLUAutoencoder(4, bandwidth=0.5), torch.randn(20, 4)
    value, gradients = loss_and_gradients(sae, lambda: loss_terms(sae, StepContext(x, x)).sparsity)
    assert value == (sae.encode(x) > 0).sum(dim=1).float().mean()
    assert {name for name, gradient in gradients.items() if gradient.any()} == {"log_threshold"}
    # More of it means fewer active latents, so that descent raises the thresholds.
    assert (gradients["log_threshold"] <= 0).all()


def test_low_precision_counts_in_float32() -> None:
    torch.manual_seed(0)
    sae, x = JumpReLUAutoencoder(16, 2048, bandwidth=0.5), torch.randn(300, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_terms(sae, StepContext(x, x))
    assert found.sparsity.dtype == torch.float32
    counted = (found.output.latents > 0).sum() / 300
    torch.testing.assert_close(found.sparsity, counted)
