import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.autoencoders.kernels.decorrelation import (
    center,
    center_plain,
    subtract_variance,
    subtract_variance_plain,
)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 9),
    st.integers(1, 50),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
)
def test_they_are_the_definitions(rows: int, width: int, dtype: torch.dtype, turned: bool) -> None:
    torch.manual_seed(rows)
    values = torch.randn((width, rows) if turned else (rows, width), dtype=dtype) + 3.0
    values = values.T if turned else values
    centered, variance = center(values)
    torch.testing.assert_close((centered, variance), center_plain(values))
    product, scale = torch.randn(rows, width, dtype=dtype), torch.tensor(0.3)
    expected = subtract_variance_plain(product, centered, variance, scale)
    torch.testing.assert_close(subtract_variance(product, centered, variance, scale), expected)
