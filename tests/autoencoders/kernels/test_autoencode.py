"""Dense and sparse kernels against the plain form: values, gradients, ties, shapes and dtypes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.autoencoders.kernels import sparse
from palinka.autoencoders.kernels.autoencode import autoencode_plain, dense_autograd
from palinka.autoencoders.kernels.sparse import SparseLatents, Weights, sparse_autograd

FORMS = pytest.mark.parametrize("form", [sparse_autograd, dense_autograd])


@FORMS
@settings(max_examples=25, deadline=None)
@given(st.data(), st.booleans(), st.booleans(), st.booleans())
def test_it_is_the_definition_gradients_included(
    form: Any, inputs: Any, everything: Any, data: Any, tied: bool, biases: bool, turned: bool
) -> None:
    rows, d = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 7))
    n = data.draw(st.integers(1, 80))
    k = data.draw(st.one_of(st.just(1), st.just(n), st.integers(1, n)))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x, weights = inputs(rows, d, n, tied=tied, biases=biases, turned=turned)
    expected = everything(autoencode_plain, x, weights, k)
    torch.testing.assert_close(everything(form, x, weights, k), expected, rtol=1e-12, atol=1e-12)


def test_more_ties_than_room_in_a_later_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "CHUNK_ELEMENTS", 2 * 40)
    torch.manual_seed(0)
    x = torch.randn(7, 3)
    x[4] = 0.0
    weights = Weights(torch.randn(40, 3), torch.ones(40))
    _, latents = sparse_autograd(x, weights, 5)
    assert latents.values.shape == (7, 40)
    torch.testing.assert_close(latents.dense(), autoencode_plain(x, weights, 5)[1])
    assert (latents.dense() != 0).sum(dim=1).tolist() == [5, 5, 5, 5, 40, 5, 5]


@FORMS
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_nan_is_not_hidden(form: Any, sign: float) -> None:
    x = torch.randn(3, 2)
    x[1, 0] = torch.tensor(float("nan")).copysign(torch.tensor(sign))
    made, _ = form(x, Weights(torch.randn(50, 2)), 2)
    assert made[1].isnan().all()
    assert made[[0, 2]].isfinite().all()


@FORMS
@pytest.mark.parametrize("tied", [True, False])
def test_autocast_rounds_what_the_plain_form_rounds(
    form: Any, tied: bool, inputs: Any, everything: Any
) -> None:
    torch.manual_seed(0)
    x, weights = inputs(64, 8, 512, tied=tied, biases=True, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = everything(form, x, weights, 60)
        expected = everything(autoencode_plain, x, weights, 60)
    # Rounding makes ties, and the same ones.
    assert torch.equal(found[1] != 0, expected[1] != 0)
    assert (found[1] != 0).sum(dim=1).max() > 60
    for one, other in zip(found, expected, strict=True):
        difference = (one.double() - other.double()).norm() / other.double().norm()
        assert difference < 0.02


def test_results_do_not_depend_on_the_number_of_threads(inputs: Any, everything: Any) -> None:
    torch.manual_seed(0)
    x, weights = inputs(33, 5, 200, tied=True, biases=True, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(everything(sparse_autograd, x, weights, 4))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(other[1:2] + other[3:], found[0][1:2] + found[0][3:])


@FORMS
def test_it_cannot_be_differentiated_twice(form: Any, inputs: Any) -> None:
    x, weights = inputs(4, 3, 30, tied=True, biases=False)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(form(x, weights, 2)[0].sum(), x, create_graph=True)


def test_zeros_of_sparse_latents_are_at_no_index() -> None:
    values = torch.tensor([[2.0, 3.0], [5.0, 0.0], [0.0, 0.0]], requires_grad=True)
    indices = torch.tensor([[1, 3], [0, 0], [0, 0]], dtype=torch.int32)
    latents = SparseLatents(values, indices, 4)
    assert latents.dense().tolist() == [[0, 2, 0, 3], [5, 0, 0, 0], [0, 0, 0, 0]]
    assert latents.fired().tolist() == [1, 1, 0, 1]
    assert (len(latents), latents.dtype) == (3, torch.float32)
    assert not latents.detach().values.requires_grad
    weights = torch.arange(12.0).view(3, 4)
    (latents.dense() * weights).sum().backward()
    assert values.grad is not None
    assert values.grad[values != 0].tolist() == [1.0, 3.0, 4.0]
