import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.autoencoders.kernels import batch_threshold, batch_threshold_plain


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 1000), st.data())
def test_so_many_values_reach_it(rows: int, width: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, width))
    torch.manual_seed(seed)
    values = torch.randn(rows, width).relu()
    threshold = batch_threshold(values, k)
    assert threshold == batch_threshold_plain(values, k)
    assert int((values >= threshold).sum()) >= rows * k  # ties are kept
    assert int((values > threshold).sum()) < rows * k
    # Leading dimensions make no difference.
    assert batch_threshold(values.reshape(1, rows, width), k) == threshold


def test_it_has_no_graph_and_a_nan_is_seen() -> None:
    values = torch.randn(4, 5, requires_grad=True)
    assert not batch_threshold(values, 2).requires_grad
    assert batch_threshold(torch.tensor([[1.0, float("nan"), 0.5]]), 1).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_stays_in_its_dtype(dtype: torch.dtype) -> None:
    assert batch_threshold(torch.rand(3, 4).to(dtype), 2).dtype == dtype
