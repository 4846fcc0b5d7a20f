import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.autoencoders.kernels import keep_top_k, keep_top_k_plain, kth_largest


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


def test_ties_at_the_threshold_are_all_kept() -> None:
    kept = keep_top_k(torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.5]]), 2)
    assert kept.tolist() == [[3.0, 1.0, 1.0, 1.0, 0.0]]


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
