import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from palinka.analyses.stats.joint_histogram import (
    CONSTANT,
    COUNTED,
    DISORDERED,
    binned_rows,
    joint_histogram,
)


def histograms_agree(values, outlying, bins):
    rows = binned_rows(values, outlying, bins)
    for first in range(len(values)):
        for second in range(first):
            kept = ~(outlying[first] | outlying[second])
            expected, _, _ = np.histogram2d(values[first, kept], values[second, kept], bins=bins)
            found = joint_histogram(rows, first, second)
            np.testing.assert_array_equal(found, expected, err_msg=f"pair {first}, {second}")


@st.composite
def matrices(draw):
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    shape = draw(st.tuples(st.just(2), st.integers(1, 30)))
    largest = float(np.float32(1e30)) if dtype == np.float32 else 1e300
    numbers = st.one_of(
        st.floats(-largest, largest, width=np.dtype(dtype).itemsize * 8),  # with subnormal ones
        st.integers(-8, 8).map(lambda n: n * float(np.finfo(dtype).smallest_subnormal)),
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
@pytest.mark.parametrize("share", [0.0, 0.02, 0.4])
def test_counts_are_those_of_numpy_where_masks_differ(dtype, share):
    generator = np.random.default_rng(3)
    values = generator.standard_t(2, size=(12, 301)).astype(dtype)
    # The largest value of every row is an outlier of the next one: edges move in most pairs.
    outlying = generator.random(values.shape) < share
    outlying[np.arange(12), np.roll(values.argmax(axis=1), 1)] = True
    histograms_agree(values, outlying, 15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_on_edges_fall_where_numpy_puts_them(dtype):
    edges = np.linspace(dtype(-0.3), dtype(1.7), 16)
    assert edges.dtype == dtype
    near = np.concatenate([edges, np.nextafter(edges, dtype(-9)), np.nextafter(edges, dtype(9))])
    near = np.clip(near, edges[0], edges[-1])
    values = np.stack([near, near[::-1], np.roll(near, 7)])
    histograms_agree(values, np.zeros(values.shape, dtype=np.bool_), 15)


@pytest.mark.parametrize(
    ("values", "bins", "status"),
    [
        # Edges that rounding disorders are left to NumPy.
        (np.array([np.arange(26), np.arange(26)[::-1]]) * 5e-324, 15, DISORDERED),
        # More bins than a byte can count.
        (np.random.default_rng(5).normal(size=(2, 5000)), 300, COUNTED),
    ],
)
def test_counts_are_those_of_numpy_in_every_status(values, bins, status):
    outlying = np.zeros(values.shape, dtype=np.bool_)
    assert binned_rows(values, outlying, bins).status_of_pairs()[0, 1] == status
    histograms_agree(values, outlying, bins)


@pytest.mark.parametrize("seed", range(5))
def test_every_row_has_the_range_of_what_both_keep(seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.standard_t(2, size=(12, 60)).astype(np.float32)
    x[3] = 1.0  # without variance
    x[4, :3] = x[4].max() + 1  # several units are the largest
    outlying = generator.random(x.shape) < 0.05
    outlying[5] = True  # nothing is kept beside it
    rows = binned_rows(x, outlying, 15)
    assert len(rows.digits) > 12  # some edges move
    for item in range(12):
        for other in range(12):
            kept = ~(outlying[item] | outlying[other])
            index = rows.binning[item, other]
            if not kept.any() or np.ptp(x[item][kept]) == 0:
                assert rows.status[index] == CONSTANT
                continue
            edges = np.linspace(x[item][kept].min(), x[item][kept].max(), 16, dtype=np.float32)
            expected = np.clip(np.searchsorted(edges, x[item], side="right") - 1, 0, 14)
            np.testing.assert_array_equal(rows.digits[index][kept], expected[kept])
            assert (rows.digits[index][outlying[item]] == 15).all()
