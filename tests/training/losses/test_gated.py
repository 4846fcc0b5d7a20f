from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palinka.autoencoders import GatedAutoencoder
from palinka.training.losses import Objective, StepContext, loss_terms


def transcription(sae: GatedAutoencoder, x: Tensor, target: Tensor, weight: float) -> Tensor:
    """The paper's loss, the frozen decoder a copy made beforehand; means in place of sums."""
    frozen, frozen_bias = sae.decoder_weight.data.clone(), sae.decoder_bias.data.clone()
    w_gate = sae.encoder.weight
    w_mag = torch.exp(sae.log_magnitude)[:, None] * w_gate
    gate = (x - sae.decoder_bias) @ w_gate.T + sae.gate_bias
    magnitude = torch.relu((x - sae.decoder_bias) @ w_mag.T + sae.magnitude_bias)
    reconstruction = ((gate > 0) * magnitude) @ sae.decoder_weight + sae.decoder_bias
    by_gate = torch.relu(gate) @ frozen + frozen_bias
    norms = 1.0 if sae.unit_norm else sae.decoder_weight.norm(dim=1)
    return (
        ((target - reconstruction) ** 2).mean()
        + weight * (torch.relu(gate) * norms).sum(dim=1).mean()
        + ((target - by_gate) ** 2).mean()
    )


@pytest.mark.parametrize("unit_norm", [True, False])
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 1000))
def test_loss_and_gradients_are_the_papers(
    with_random_weights: Callable, loss_and_gradients: Callable, unit_norm: bool,
    input_dim: int, latent_dim: int, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    sae = with_random_weights(GatedAutoencoder(input_dim, latent_dim, unit_norm=unit_norm))
    x, target = torch.randn(2, 5, input_dim, dtype=torch.float64)
    objective = Objective(0.3, 0.0, 0, 0)
    value, gradients = loss_and_gradients(
        sae, lambda: objective(loss_terms(sae, StepContext(x, target)), step=0).total
    )
    expected, by_hand = loss_and_gradients(sae, lambda: transcription(sae, x, target, 0.3))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradients, by_hand)


def test_the_auxiliary_loss_weighs_one_unless_told_otherwise() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 4)
    found = loss_terms(GatedAutoencoder(4), StepContext(x, x))
    assert Objective(1.0, 0.0, 0, 0)(found, 0).auxiliary == found.auxiliary
    told = Objective(1.0, 0.0, 0, 0, auxiliary_weight=0.25)(found, 0)
    assert told.auxiliary == 0.25 * found.auxiliary


def test_the_auxiliary_loss_teaches_the_gate_and_leaves_the_decoder_alone(
    loss_and_gradients: Callable,
) -> None:
    torch.manual_seed(0)
    sae, x = GatedAutoencoder(4, subtract_decoder_bias=False), torch.randn(9, 4)
    _, gradients = loss_and_gradients(sae, lambda: loss_terms(sae, StepContext(x, x)).auxiliary)
    moved = {name for name, gradient in gradients.items() if gradient.any()}
    assert moved == {"encoder.weight", "gate_bias"}


def test_the_output_is_that_of_a_plain_pass() -> None:
    torch.manual_seed(0)
    sae, x = GatedAutoencoder(4), torch.randn(9, 4)
    for ours, plain in zip(loss_terms(sae, StepContext(x, x)).output, sae(x), strict=True):
        assert torch.equal(ours, plain)
