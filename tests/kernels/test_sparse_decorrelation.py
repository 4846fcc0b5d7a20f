import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.autoencoders.kernels import (
    SparseLatents,
    sparse_squared_covariance,
    sparse_squared_covariance_plain,
)
from palinka.errors import InputError


def drawn(
    rows: int, width: int, room: int, seed: int, dtype: torch.dtype = torch.float64
) -> SparseLatents:
    """Random latents, some rows with fewer than there is room for."""
    torch.manual_seed(seed)
    indices = torch.stack([torch.randperm(width)[:room] for _ in range(rows)]).int()
    there = torch.rand(rows, room) < 0.8
    values = (torch.rand(rows, room, dtype=dtype) + 0.5) * there
    return SparseLatents(values.requires_grad_(), indices * there.int(), width)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(1, 30), st.integers(0, 999), st.data())
def test_it_is_the_definition_at_all_that_is_not_zero(
    rows: int, width: int, seed: int, data: st.DataObject
) -> None:
    latents = drawn(rows, width, data.draw(st.integers(1, width)), seed)
    found, expected = sparse_squared_covariance(latents), sparse_squared_covariance_plain(latents)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    (mine,) = torch.autograd.grad(3 * found, latents.values)
    (theirs,) = torch.autograd.grad(3 * expected, latents.values)
    theirs = theirs.where(latents.values != 0, 0.0)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_finite_differences() -> None:
    latents = drawn(6, 12, 4, 0)
    kept = latents.values.detach() != 0

    def run(values: torch.Tensor) -> torch.Tensor:
        spread = torch.zeros_like(latents.values).masked_scatter(kept, values)
        return sparse_squared_covariance(SparseLatents(spread, latents.indices, 12))

    assert torch.autograd.gradcheck(run, latents.values.detach()[kept].requires_grad_())


def test_float32_costs_digits_only_where_it_is_stored() -> None:
    latents = drawn(200, 900, 20, 1, torch.float32)
    exact = SparseLatents(latents.values.detach().double().requires_grad_(), latents.indices, 900)
    found, expected = sparse_squared_covariance(latents), sparse_squared_covariance_plain(exact)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    (mine,) = torch.autograd.grad(found, latents.values)
    (theirs,) = torch.autograd.grad(expected, exact.values)
    kept = latents.values != 0
    assert mine.dtype == torch.float32
    assert (mine.double() - theirs)[kept].norm() < 1e-6 * theirs[kept].norm()


def test_one_row_has_no_covariance() -> None:
    with pytest.raises(InputError, match="at least 2 rows"):
        sparse_squared_covariance(drawn(1, 5, 2, 0))


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    latents = drawn(4, 5, 2, 0)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(sparse_squared_covariance(latents), latents.values, create_graph=True)


def test_what_no_loop_takes_is_made_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    latents = drawn(30, 50, 4, 1)
    expected = sparse_squared_covariance(latents)
    (theirs,) = torch.autograd.grad(expected, latents.values)
    monkeypatch.setattr(
        "palinka.autoencoders.kernels.dispatch.supports_numba", lambda *tensors: False
    )
    monkeypatch.setattr("palinka.autoencoders.kernels.loops.gram_squares", None)
    found = sparse_squared_covariance(latents)
    (mine,) = torch.autograd.grad(found, latents.values)
    torch.testing.assert_close(found, expected)
    kept = latents.values != 0
    torch.testing.assert_close(mine[kept], theirs[kept])
