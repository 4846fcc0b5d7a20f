import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.autoencoders.kernels import (
    normalize_rows_,
    normalize_rows_plain,
    project_gradient_,
    project_gradient_plain,
)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 9),
    st.integers(1, 40),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.booleans(),
)
def test_they_are_the_definitions(rows: int, width: int, dtype: torch.dtype, turned: bool) -> None:
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
