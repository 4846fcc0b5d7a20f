import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from palinka.analyses.stats.joint_histogram import binned_rows, joint_histogram


def histograms_agree(values, outlying, bins):
    rows = binned_rows(values, outlying, bins)
    constant = rows.constant_pairs()
    for first in range(len(values)):
        for second in range(first):
            kept = ~(outlying[first] | outlying[second])
            each = values[first, kept], values[second, kept]
            assert constant[first, second] == any(len(set(x.tolist())) < 2 for x in each)
            if constant[first, second]:
                continue
            expected, _, _ = np.histogram2d(*each, bins=bins)
            found = joint_histogram(rows, first, second)
            np.testing.assert_array_equal(found, expected, err_msg=f"pair {first}, {second}")


@st.composite
def matrices(draw):
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    shape = draw(st.tuples(st.just(2), st.integers(1, 30)))
    largest = float(np.float32(1e30)) if dtype == np.float32 else 1e300
    numbers = st.one_of(
        st.floats(-largest, largest, width=np.dtype(dtype).itemsize * 8, allow_subnormal=False),
        st.integers(-3, 12).map(float),  # many ties, on edges as well
    )
    values = draw(hnp.arrays(dtype, shape, elements=numbers))
    outlying = draw(hnp.arrays(np.bool_, shape, elements=st.booleans(), fill=st.just(False)))
    return values, outlying


@settings(deadline=None, max_examples=60)
@given(matrices(), st.integers(1, 20))
def test_counts_are_those_of_numpy_on_any_numbers(matrix, bins):
    histograms_agree(*matrix, bins)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_on_edges_fall_where_numpy_puts_them(dtype):
    edges = np.linspace(dtype(-0.3), dtype(1.7), 16)
    assert edges.dtype == dtype
    near = np.concatenate([edges, np.nextafter(edges, dtype(-9)), np.nextafter(edges, dtype(9))])
    near = np.clip(near, edges[0], edges[-1])
    values = np.stack([near, near[::-1], np.roll(near, 7)])
    histograms_agree(values, np.zeros(values.shape, dtype=np.bool_), 15)


def test_counts_of_more_bins_than_a_byte_can_count():
    values = np.random.default_rng(5).normal(size=(2, 5000))
    histograms_agree(values, np.zeros(values.shape, dtype=np.bool_), 300)
