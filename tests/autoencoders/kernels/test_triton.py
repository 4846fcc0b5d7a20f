"""Triton kernels against the plain form, on a GPU or in the interpreter.

Triton comes with torch for GPUs. Elsewhere `pip install triton --no-deps` is enough (286 MB), and
`pytest tests/autoencoders/kernels/test_triton.py` by itself, since Triton must be imported after
this file has set TRITON_INTERPRET.
"""

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palinka.autoencoders import linear
from palinka.autoencoders.kernels.autoencode import autoencode_plain
from palinka.autoencoders.kernels.sparse import SparseLatents, Weights
from palinka.autoencoders.kernels.topk import keep_top_k_plain
from palinka.autoencoders.linear import autoencode

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton was imported to compile, and there is no GPU", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"

from palinka.autoencoders.kernels import triton as kernels  # noqa: E402
from palinka.autoencoders.kernels.triton import GROUP, encode, triton_autograd  # noqa: E402


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    # The interpreter holds bfloat16 as integers, and multiplies them as such.
    if DEVICE != "cpu":
        return
    from triton import language
    from triton.runtime import interpreter

    right = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        if a.dtype.scalar == language.bfloat16:
            a, b = self.cast_impl(a, language.float32), self.cast_impl(b, language.float32)
        return right(self, a, b, *others)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


FLOAT32 = {"dtype": torch.float32, "device": DEVICE}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, **FLOAT32)


@pytest.fixture
def both(everything: Any) -> Callable[..., list[list[Tensor]]]:
    """Everything that the kernels and the plain form give."""

    def both(x: Tensor, weights: Weights, k: int) -> list[list[Tensor]]:
        return [everything(form, x, weights, k) for form in (triton_autograd, autoencode_plain)]

    return both


@pytest.mark.parametrize(
    ("rows", "d", "n", "k"),
    [(3, 5, 40, 1), (2, 3, 33, 33), (0, 3, 20, 2), (1, 1, 1, 1), (3, 140, 70, 4), (5, 19, 50, 7)],
)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("biases", [True, False])
def test_it_is_the_definition_gradients_included(
    rows: int, d: int, n: int, k: int, tied: bool, biases: bool, inputs: Any, both: Any
) -> None:
    torch.manual_seed(0)
    # Matrices with biases are not contiguous.
    x, weights = inputs(rows, d, n, tied=tied, biases=biases, turned=biases, **FLOAT32)
    found, expected = both(x, weights, k)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found[1] != 0, expected[1] != 0)


@pytest.mark.parametrize("slack", [0, 2, 32])
@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 90), st.integers(1, 90))
def test_ties_are_all_kept_however_many(slack: int, seed: int, n: int, k: int) -> None:
    # An input of one, so that latents are the weights, which are few distinct numbers.
    torch.manual_seed(seed)
    weights = Weights(torch.randint(-2, 3, (n, 1), device=DEVICE).float())
    x = torch.tensor([[1.0], [-1.0], [0.0]], device=DEVICE)
    expected = autoencode_plain(x, weights, min(k, n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "SLACK", slack)
        made, latents = triton_autograd(x, weights, min(k, n))
    assert torch.equal(made, expected[0])
    assert torch.equal(latents.dense(), expected[1])
    # By columns, and no more room than the row with the most needs.
    assert latents.values.shape[1] == max(1, int((expected[1] != 0).sum(dim=1).max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_product_is_rounded_once_and_its_largest_are_noted(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = (drawn(*shape).to(dtype) for shape in ((131, 150), (141, 150), (141,)))
    made, largest = encode(x, weight, bias)
    exact = x.double() @ weight.double().T + bias.double()
    assert made.dtype == dtype
    assert ((made - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + 2e-5).all()
    padded = torch.nn.functional.pad(made.float().relu(), (0, -len(weight) % GROUP))
    assert torch.equal(largest.view(torch.float32), padded.unflatten(1, (-1, GROUP)).amax(dim=2))


@pytest.mark.parametrize("slack", [0, 32])
def test_values_of_bfloat16_tie_as_the_definition_says(
    monkeypatch: pytest.MonkeyPatch, slack: int
) -> None:
    monkeypatch.setattr(kernels, "SLACK", slack)
    torch.manual_seed(0)
    x, weight = drawn(6, 8).bfloat16(), drawn(300, 8).bfloat16()
    values, indices = kernels.select_rows(x, weight, None, 40)
    expected = keep_top_k_plain(encode(x, weight, None)[0].relu(), 40)
    assert (expected != 0).sum(dim=1).max() > 40
    assert torch.equal(SparseLatents(values, indices, 300).dense(), expected)


@pytest.mark.parametrize(
    ("tied", "dtype", "sizes", "k"),
    [
        (True, torch.float32, (4, 24, 90), 8),
        (False, torch.float32, (4, 24, 90), 8),
        (True, torch.bfloat16, (3, 16, 60), 5),
    ],
)
def test_autocast_sums_in_float32_and_weights_of_bfloat16_give_bfloat16(
    tied: bool, dtype: torch.dtype, sizes: tuple[int, ...], k: int, inputs: Any, both: Any
) -> None:
    torch.manual_seed(0)
    options = {**FLOAT32, "dtype": dtype}
    x, weights = inputs(*sizes, tied=tied, biases=True, turned=True, **options)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.float32):
        found, expected = both(x, weights, k)
    assert found[0].dtype == found[1].dtype == dtype
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other.double()).norm() / other.double().norm() < 0.02


@pytest.mark.parametrize("slack", [0, 32])
def test_rows_are_done_in_parts(monkeypatch: pytest.MonkeyPatch, slack: int, both: Any) -> None:
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 2 * 40)
    monkeypatch.setattr(kernels, "SLACK", slack)
    torch.manual_seed(0)
    x = drawn(7, 3)
    x[4] = 0.0
    weights = Weights(drawn(40, 3).requires_grad_(), torch.ones(40, device=DEVICE).requires_grad_())
    found, expected = both(x.requires_grad_(), weights, 5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found[1] != 0).sum() == 6 * 5 + 40


@pytest.mark.parametrize("slack", [0, 32])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_nan_is_not_hidden(monkeypatch: pytest.MonkeyPatch, slack: int, sign: float) -> None:
    monkeypatch.setattr(kernels, "SLACK", slack)
    torch.manual_seed(0)
    x = drawn(4, 2)
    x[1, 0] = torch.tensor(float("nan")).copysign(torch.tensor(sign))
    weights = Weights(drawn(50, 2), drawn(50))
    if slack == 0:  # one more than there is room for
        x[3] = 0.0
        weights.encoder_bias[:] = 1.0  # type: ignore[index]
    made, latents = triton_autograd(x, weights, 2)
    assert made[1].isnan().all()
    assert latents.values[1].isnan().sum() == 1
    assert made[[0, 2, 3]].isfinite().all()


def test_a_nan_among_latents_is_found_where_it_is() -> None:
    weights = Weights(torch.arange(60.0, device=DEVICE)[:, None], torch.zeros(60, device=DEVICE))
    weights.encoder_bias[33] = float("nan")  # type: ignore[index]
    _, latents = triton_autograd(torch.ones(2, 1, device=DEVICE), weights, 3)
    assert latents.dense().isnan().nonzero().tolist() == [[0, 33], [1, 33]]


def test_many_rows_of_one_latent_are_added_up_in_their_order() -> None:
    torch.manual_seed(0)
    values, matrix = drawn(50, 2), drawn(50, 130)
    indices = torch.tensor([[1, 3]] * 50, dtype=torch.int32, device=DEVICE)
    columns = kernels.sort_by_column(values, indices, 5)
    sums = kernels.column_sums(columns, values, matrix)
    expected = torch.zeros(5, 130, device=DEVICE)
    expected[[1, 3]] = values.T @ matrix
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(sums, kernels.column_sums(columns, values, matrix))
    torch.testing.assert_close(
        kernels.column_sums(columns, values, values.new_ones(50, 1))[[1, 3], 0], values.sum(dim=0)
    )


def test_tensors_of_a_gpu_with_few_latents_take_it(
    monkeypatch: pytest.MonkeyPatch, inputs: Any
) -> None:
    x, weight = torch.empty(64, 1), torch.empty(1 << 14, 1)
    assert not linear.supports_triton(weight)
    assert not linear.supports_triton(weight.to("meta"))
    monkeypatch.setattr(linear, "supports_triton", lambda tensor: True)
    assert linear.use_sparse(x, weight, 64)
    assert not linear.use_sparse(x, weight, 1 << 10)
    assert not linear.use_sparse(x[:8], weight, 64)
    monkeypatch.setattr(linear, "SPARSE_ELEMENTS", 1)
    taken = []
    monkeypatch.setattr(
        "palinka.autoencoders.kernels.triton.triton_autograd",
        lambda *given: taken.append(1) or triton_autograd(*given),
    )
    x, weights = inputs(2, 3, 64, tied=True, biases=False, **FLOAT32)
    assert isinstance(autoencode(x, weights, 1)[1], SparseLatents)
    assert taken == [1]
