import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.autoencoders.kernels.topk import (
    batch_threshold,
    batch_threshold_plain,
    keep_top_k,
    keep_top_k_plain,
    kth_largest,
    normalize_rows_,
    project_gradient_,
    project_gradient_plain,
)


def transcription(row: list[float], k: int) -> list[float]:
    """The spec's sentence, one value at a time."""
    threshold = sorted(row, reverse=True)[k - 1]
    return [value if value >= threshold else 0.0 for value in row]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 1000), st.data())
def test_it_is_the_definition_with_ties_kept(
    rows: int, width: int, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, width))
    # Few distinct values, so that ties at the threshold are common.
    torch.manual_seed(seed)
    values = torch.tensor([0.0, 0.5, 1.0, 2.0, -1.0])[torch.randint(5, (rows, width))]
    expected = torch.tensor([transcription(row, k) for row in values.tolist()])
    assert torch.equal(keep_top_k(values, k), expected)
    assert torch.equal(keep_top_k_plain(values, k), expected)
    batch = values.reshape(1, -1)
    by_size = [kth_largest(batch, k).item() for k in range(1, rows * width + 1)]
    assert by_size == sorted(batch[0].tolist(), reverse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_equals_the_plain_form_in_every_dtype_and_layout(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.relu(torch.randn(64, 3, 50)).to(dtype).permute(1, 2, 0)  # not contiguous
    for k in (1, 7, 64):
        assert torch.equal(keep_top_k(values, k), keep_top_k_plain(values, k))
    assert keep_top_k(values[:0], 3).shape == (0, 50, 64)
    values[1, 2, 3] = torch.nan
    assert keep_top_k(values, 1).isnan().any()


def test_the_gradient_passes_where_a_value_was_kept() -> None:
    torch.manual_seed(0)
    values = torch.randn(5, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: keep_top_k(v, 4), (values,))
    keep_top_k(values, 4).sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad != 0, keep_top_k_plain(values, 4) != 0)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 7),
    st.integers(0, 1000),
    st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    st.data(),
)
def test_k_values_per_row_reach_the_batch_threshold(
    rows: int, width: int, seed: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, width))
    torch.manual_seed(seed)
    values = torch.randn(rows, width).to(dtype).requires_grad_().relu()
    threshold = batch_threshold(values, k)
    assert threshold == batch_threshold_plain(values, k)
    assert threshold.dtype == dtype
    assert not threshold.requires_grad
    assert int((values >= threshold).sum()) >= rows * k  # ties are kept
    assert int((values > threshold).sum()) < rows * k
    # Leading dimensions make no difference.
    assert batch_threshold(values.reshape(1, rows, width), k) == threshold
    assert batch_threshold(values * torch.nan, k).isnan()


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
    expected = torch.nn.functional.normalize(made, dim=1)
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
