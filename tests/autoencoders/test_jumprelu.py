import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palinka.autoencoders import JumpReLUAutoencoder
from palinka.autoencoders.jumprelu import heaviside_ste, jump_relu
from palinka.errors import InputError


def test_every_threshold_begins_as_asked_and_stays_positive() -> None:
    sae = JumpReLUAutoencoder(4, initial_threshold=0.25)
    torch.testing.assert_close(sae.threshold, torch.full((8,), 0.25))
    sae.log_threshold.data.fill_(-50.0)
    assert (sae.threshold > 0).all()


@pytest.mark.parametrize("name", ["bandwidth", "initial_threshold", "tanh_scale"])
def test_what_cannot_be_is_named(name: str) -> None:
    for value in (0, -1.0, float("nan"), float("inf"), "1", True, None):
        with pytest.raises(InputError, match=f"{name} must be a positive number, got"):
            JumpReLUAutoencoder(4, **{name: value})
    with pytest.raises(InputError, match="sparsity must be 'l0' or 'tanh', got 'l1'"):
        JumpReLUAutoencoder(4, sparsity="l1")  # type: ignore[arg-type]


def transcription(
    values: Tensor, threshold: Tensor, bandwidth: float, gradient: Tensor
) -> dict[str, Tensor]:
    """Forward and pseudo-derivatives of the jump and of the step, by loops."""
    names = ("jump", "step", "jump_values", "step_values")
    made = {name: torch.zeros_like(values) for name in names}
    made |= {f"{name}_threshold": torch.zeros_like(threshold) for name in names[:2]}
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            z, theta, g = values[i, j].item(), threshold[j].item(), gradient[i, j].item()
            above = 1.0 if z > theta else 0.0
            made["jump"][i, j] = z * above
            made["step"][i, j] = above
            made["jump_values"][i, j] = above * g
            kernel = 1.0 if -0.5 < (z - theta) / bandwidth < 0.5 else 0.0
            made["jump_threshold"][j] += -(theta / bandwidth) * kernel * g
            made["step_threshold"][j] += -(1.0 / bandwidth) * kernel * g
    return made


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 6), st.floats(0.01, 3.0), st.integers(0, 1000))
def test_values_and_gradients_are_the_papers(
    rows: int, latents: int, bandwidth: float, seed: int
) -> None:
    torch.manual_seed(seed)
    values = torch.randn(rows, latents, dtype=torch.float64)
    threshold = torch.rand(latents, dtype=torch.float64) + 0.01
    values[0, 0] = threshold[0]  # not above
    gradient = torch.randn(rows, latents, dtype=torch.float64)
    expected = transcription(values, threshold, bandwidth, gradient)
    for name, function in (("jump", jump_relu), ("step", heaviside_ste)):
        a, theta = values.clone().requires_grad_(), threshold.clone().requires_grad_()
        result = function(a, theta, bandwidth)
        torch.testing.assert_close(result, expected[name])
        result.backward(gradient)
        assert theta.grad is not None
        torch.testing.assert_close(theta.grad, expected[f"{name}_threshold"])
        to_values = torch.zeros_like(a) if a.grad is None else a.grad
        torch.testing.assert_close(to_values, expected[f"{name}_values"])


def test_over_many_rows_the_threshold_gets_the_derivative_of_the_expected_loss() -> None:
    """Uniform values on (0, 2): both expectations are known, and so are their derivatives."""
    torch.manual_seed(0)
    values = 2.0 * torch.rand(200_000, 1, dtype=torch.float64)
    theta = torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
    heaviside_ste(values, theta, 0.2).mean().backward()
    assert theta.grad is not None
    assert math.isclose(theta.grad.item(), -0.5, rel_tol=0.02)
    theta.grad = None
    jump_relu(values, theta, 0.2).mean().backward()
    assert math.isclose(theta.grad.item(), -0.8 * 0.5, rel_tol=0.02)


def test_more_dimensions_and_other_dtypes() -> None:
    torch.manual_seed(0)
    values, theta = torch.randn(5, 3, 4), torch.full((4,), 0.2, requires_grad=True)
    by_shape = [
        torch.autograd.grad(jump_relu(x, theta, 1.0).sum(), theta)
        for x in (values, values.reshape(15, 4))
    ]
    torch.testing.assert_close(*by_shape)
    half = values.bfloat16().requires_grad_()
    result = jump_relu(half, theta, 1.0)
    result.sum().backward()
    assert result.dtype == half.grad.dtype == torch.bfloat16
    assert theta.grad.dtype == torch.float32
