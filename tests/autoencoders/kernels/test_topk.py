import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.autoencoders.kernels.topk import (
    SparseLatents,
    batch_threshold,
    batch_threshold_plain,
    keep_top_k,
    keep_top_k_plain,
    kth_largest,
    normalize_rows_,
    normalize_rows_plain,
    project_gradient_,
    project_gradient_plain,
)


def transcription(row: list[float], k: int) -> list[float]:
    """The spec's sentence, one value at a time."""
    threshold = sorted(row, reverse=True)[k - 1]
    return [value if value >= threshold else 0.0 for value in row]


@settings(max_examples=60, deadline=None)
@given(
    # Few distinct values, so that ties at the threshold are common.
    rows=st.integers(1, 9).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0]), min_size=width, max_size=width),
            min_size=1,
            max_size=4,
        )
    ),
    data=st.data(),
)
def test_it_is_the_definition_with_ties_kept(rows: list[list[float]], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(rows[0])))
    values = torch.tensor(rows)
    expected = torch.tensor([transcription(row, k) for row in rows])
    assert torch.equal(keep_top_k(values, k), expected)
    assert torch.equal(keep_top_k_plain(values, k), expected)


def test_a_threshold_over_a_whole_batch_counts_ties_as_often_as_they_occur() -> None:
    values = torch.tensor([[3.0, 1.0, 1.0], [2.0, 1.0, -1.0]])
    batch = values.reshape(1, -1)
    assert [kth_largest(batch, k).item() for k in range(1, 7)] == [3, 2, 1, 1, 1, -1]
    assert kth_largest(values, 2).tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_equals_the_plain_form_in_every_dtype_and_layout(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.relu(torch.randn(64, 3, 50)).to(dtype).permute(1, 2, 0)  # not contiguous
    for k in (1, 7, 64):
        assert torch.equal(keep_top_k(values, k), keep_top_k_plain(values, k))


def test_no_rows() -> None:
    assert keep_top_k(torch.empty(0, 8), 3).shape == (0, 8)


def test_the_gradient_passes_where_a_value_was_kept() -> None:
    torch.manual_seed(0)
    values = torch.randn(5, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: keep_top_k(v, 4), (values,))
    keep_top_k(values, 4).sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad != 0, keep_top_k_plain(values, 4) != 0)


def test_a_nan_is_not_hidden() -> None:
    assert keep_top_k(torch.tensor([[1.0, float("nan"), 0.5]]), 1).isnan().any()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 1000), st.data())
def test_k_values_per_row_reach_the_batch_threshold(
    rows: int, width: int, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, width))
    torch.manual_seed(seed)
    values = torch.randn(rows, width).relu()
    threshold = batch_threshold(values, k)
    assert threshold == batch_threshold_plain(values, k)
    assert int((values >= threshold).sum()) >= rows * k  # ties are kept
    assert int((values > threshold).sum()) < rows * k
    # Leading dimensions make no difference.
    assert batch_threshold(values.reshape(1, rows, width), k) == threshold


def test_a_batch_threshold_has_no_graph_and_propagates_nan() -> None:
    values = torch.randn(4, 5, requires_grad=True)
    assert not batch_threshold(values, 2).requires_grad
    assert batch_threshold(torch.tensor([[1.0, float("nan"), 0.5]]), 1).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_batch_threshold_keeps_its_dtype(dtype: torch.dtype) -> None:
    assert batch_threshold(torch.rand(3, 4).to(dtype), 2).dtype == dtype


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


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 9),
    st.integers(1, 40),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.booleans(),
)
def test_unit_norm_is_the_definition(
    rows: int, width: int, dtype: torch.dtype, turned: bool
) -> None:
    torch.manual_seed(rows)
    shape = (width, rows) if turned else (rows, width)
    made, gradient = (torch.randn(shape).to(dtype) for _ in range(2))
    if turned:
        made, gradient = made.T, gradient.T
    if rows:
        made[0] = 0.0
    expected = normalize_rows_plain(made)
    normalize_rows_(made)
    torch.testing.assert_close(made, expected)
    projected = project_gradient_plain(gradient, made)
    project_gradient_(gradient, made)
    torch.testing.assert_close(gradient, projected)


def test_a_graph_notices_that_its_weights_have_changed() -> None:
    rows = torch.nn.Parameter(torch.randn(3, 4))
    product = (rows * rows).sum()
    normalize_rows_(rows)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
