from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from palinka.autoencoders.kernels import decorrelation
from palinka.autoencoders.kernels.decorrelation import squared_covariance, squared_covariance_plain
from palinka.autoencoders.kernels.sparse import SparseLatents
from palinka.autoencoders.kernels.topk import keep_top_k
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


def kept(rows: int, width: int, k: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, width, dtype=torch.float64, generator=generator).relu()
    return keep_top_k(dense, k)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.integers(1, 7), st.integers(0, 10_000), st.booleans())
def test_both_forms_are_the_definition(rows: int, width: int, seed: int, turned: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(rows, width, dtype=torch.float64, generator=generator) + 0.5
    latents = latents.T.contiguous().T if turned else latents
    expected = value_and_gradient(transcription, latents)
    for form in (squared_covariance, squared_covariance_plain):
        actual = value_and_gradient(form, latents)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        self.numbers = max(self.numbers, *(tensor.numel() for tensor in made), 0)
        return result


@pytest.mark.parametrize(("rows", "width"), [(8, 100), (100, 8)])
def test_no_matrix_is_larger_than_it_has_to_be(rows: int, width: int) -> None:
    latents = torch.randn(rows, width, requires_grad=True)
    with LargestTensor() as largest:
        squared_covariance(latents).backward()
    assert 0 < largest.numbers <= rows * width


@pytest.mark.parametrize(("rows", "width"), [(60, 700), (300, 40), (64, 64)])
@pytest.mark.parametrize(
    ("dtype", "tolerance", "of_gradient"),
    [
        (torch.float64, 1e-10, 1e-10),
        (torch.float32, 1e-6, 3e-6),
        (torch.bfloat16, 5e-3, 2e-2),
        (torch.float16, 5e-3, 2e-2),
    ],
)
def test_precision_of_value_and_gradient(
    rows: int, width: int, dtype: torch.dtype, tolerance: float, of_gradient: float
) -> None:
    latents = kept(rows, width, width // 6).to(dtype)
    latents[3] = 0.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = value_and_gradient(squared_covariance, latents)
    expected = value_and_gradient(squared_covariance_plain, latents.double())
    assert found[0].dtype == torch.promote_types(dtype, torch.float32)
    assert found[1].dtype == dtype
    assert (found[0] - expected[0]).abs() <= tolerance * expected[0]
    assert (found[1] - expected[1]).norm() <= of_gradient * expected[1].norm()


def test_float16_does_not_overflow_and_a_large_mean_costs_few_digits() -> None:
    assert torch.isfinite(squared_covariance((kept(20, 500, 100) * 100).half()))
    latents = kept(20, 100, 30)
    expected = squared_covariance_plain(latents)
    actual = squared_covariance(latents.float() + 100.0)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=0)


def sparse(
    rows: int, width: int, room: int, seed: int, dtype: Any = torch.float64
) -> SparseLatents:
    """Random latents, some rows with fewer than there is room for."""
    torch.manual_seed(seed)
    indices = torch.stack([torch.randperm(width)[:room] for _ in range(rows)]).int()
    there = torch.rand(rows, room) < 0.8
    values = (torch.rand(rows, room, dtype=dtype) + 0.5) * there
    return SparseLatents(values.requires_grad_(), indices * there.int(), width)


def of_sparse(
    form: Callable[[SparseLatents], Tensor], latents: SparseLatents
) -> tuple[Tensor, Tensor]:
    """Value, and gradient of the values that are not zero."""
    value, gradient = value_and_gradient(
        lambda values: form(SparseLatents(values, latents.indices, latents.width)), latents.values
    )
    return value, gradient.where(latents.values != 0, 0.0)


def dense_plain(latents: SparseLatents) -> Tensor:
    return squared_covariance_plain(latents.dense())


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(1, 30), st.integers(0, 999), st.data())
def test_sparse_latents_have_the_value_and_gradient_of_dense_ones(
    rows: int, width: int, seed: int, data: st.DataObject
) -> None:
    latents = sparse(rows, width, data.draw(st.integers(1, width)), seed)
    found, expected = of_sparse(squared_covariance, latents), of_sparse(dense_plain, latents)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_sparse_float32_loses_digits_only_in_storage() -> None:
    latents = sparse(200, 900, 20, 1, torch.float32)
    value, gradient = of_sparse(squared_covariance, latents)
    exact = SparseLatents(latents.values.double(), latents.indices, 900)
    exact_value, exact_gradient = of_sparse(dense_plain, exact)
    assert value.dtype == gradient.dtype == torch.float32
    assert (value - exact_value).abs() < 1e-6 * exact_value
    assert (gradient - exact_gradient).norm() < 1e-6 * exact_gradient.norm()


def test_sparse_latents_without_numba_become_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    latents = sparse(30, 50, 4, 1)
    expected = of_sparse(squared_covariance, latents)
    monkeypatch.setattr(decorrelation, "supports_numba", lambda *tensors, **options: False)
    torch.testing.assert_close(of_sparse(squared_covariance, latents), expected)


def test_one_row_has_no_covariance() -> None:
    for latents in (torch.randn(1, 5), sparse(1, 5, 2, 0)):
        with pytest.raises(InputError, match="at least 2 rows in a batch, got 1"):
            squared_covariance(latents)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), None])
def test_a_second_derivative_raises(shape: tuple[int, int] | None) -> None:
    latents = sparse(4, 5, 2, 0) if shape is None else torch.randn(shape, requires_grad=True)
    leaf = latents.values if isinstance(latents, SparseLatents) else latents
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(squared_covariance(latents), leaf, create_graph=True)
