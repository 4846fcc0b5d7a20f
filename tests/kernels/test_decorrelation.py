from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from palinka.autoencoders.kernels import keep_top_k, squared_covariance, squared_covariance_plain
from palinka.errors import InputError


def transcription(latents: Tensor) -> Tensor:
    """The definition, pair by pair; differentiable by autograd."""
    rows, width = latents.shape
    centered = latents - latents.mean(dim=0)
    total = 0.0 * latents.sum()
    for i in range(width):
        for j in range(width):
            if i != j:
                total = total + ((centered[:, i] * centered[:, j]).sum() / (rows - 1)) ** 2
    return total


def value_and_gradient(form: Callable[[Tensor], Tensor], latents: Tensor) -> tuple[Tensor, Tensor]:
    latents = latents.detach().requires_grad_()
    value = form(latents)
    (gradient,) = torch.autograd.grad(value, latents)
    return value.detach(), gradient


def sparse_latents(rows: int, width: int, k: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, width, dtype=torch.float64, generator=generator).relu()
    return keep_top_k(dense, k)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.integers(1, 7), st.integers(0, 10_000))
def test_both_forms_are_the_definition(rows: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(rows, width, dtype=torch.float64, generator=generator) + 0.5
    expected = value_and_gradient(transcription, latents)
    for form in (squared_covariance, squared_covariance_plain):
        actual = value_and_gradient(form, latents)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("rows", "width", "k"), [(20, 300, 40), (300, 60, 10), (64, 64, 8)])
def test_it_agrees_with_the_plain_form(rows: int, width: int, k: int) -> None:
    latents = sparse_latents(rows, width, k)
    latents[3] = 0.0
    actual = value_and_gradient(squared_covariance, latents)
    expected = value_and_gradient(squared_covariance_plain, latents)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10 * float(expected[0]))


@pytest.mark.parametrize(("rows", "width"), [(4, 9), (9, 4)])
def test_gradcheck(rows: int, width: int) -> None:
    torch.manual_seed(1)
    latents = torch.randn(rows, width, dtype=torch.float64, requires_grad=True)
    assert gradcheck(squared_covariance, (latents,))
    transposed = torch.randn(width, rows, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda z: squared_covariance(z.T), (transposed,))


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    for rows, width in [(3, 8), (8, 3)]:
        latents = torch.randn(rows, width, requires_grad=True)
        with pytest.raises(RuntimeError, match="differentiable once"):
            torch.autograd.grad(squared_covariance(latents), latents, create_graph=True)


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that any operation made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


@pytest.mark.parametrize(("rows", "width"), [(8, 100), (100, 8)])
def test_no_matrix_is_larger_than_it_has_to_be(rows: int, width: int) -> None:
    latents = torch.randn(rows, width, requires_grad=True)
    with LargestTensor() as largest:
        squared_covariance(latents).backward()
    assert 0 < largest.numbers <= rows * width


def test_float32_is_close_at_a_moderate_size() -> None:
    latents = sparse_latents(60, 700, 100).float()
    value, gradient = value_and_gradient(squared_covariance, latents)
    exact_value, exact_gradient = value_and_gradient(squared_covariance_plain, latents.double())
    assert value.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-6, atol=0)
    error = (gradient.double() - exact_gradient).norm() / exact_gradient.norm()
    assert error < 1e-6


@pytest.mark.parametrize(("rows", "width"), [(60, 700), (300, 40)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_latents(rows: int, width: int, dtype: torch.dtype) -> None:
    latents = sparse_latents(rows, width, width // 6).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = value_and_gradient(squared_covariance, latents)
    exact_value, exact_gradient = value_and_gradient(squared_covariance_plain, latents.double())
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value.double(), exact_value, rtol=5e-3, atol=0)
    assert (gradient.double() - exact_gradient).norm() / exact_gradient.norm() < 2e-2


def test_float16_does_not_overflow() -> None:
    latents = (sparse_latents(20, 500, 100) * 100).half()
    assert torch.isfinite(squared_covariance(latents))


def test_a_large_mean_costs_few_digits() -> None:
    latents = sparse_latents(20, 100, 30)
    expected = squared_covariance_plain(latents)
    actual = squared_covariance(latents.float() + 100.0)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=0)


def test_one_row_has_no_covariance() -> None:
    with pytest.raises(InputError, match="at least 2 rows in a batch, got 1"):
        squared_covariance(torch.randn(1, 5))
