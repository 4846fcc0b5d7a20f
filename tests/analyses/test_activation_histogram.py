import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from palinka.analyses.stats.latents import HistogramCounter, activation_histogram
from palinka.errors import InputError

numbers = st.one_of(
    st.just(0.0),
    st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
    st.sampled_from([2.0**-100, 1.0, 2.0, 1e30]),
)
matrices = arrays(np.float32, st.tuples(st.integers(1, 12), st.just(3)), elements=numbers)


@given(st.lists(matrices, min_size=1, max_size=4))
def test_counts_are_those_of_a_plain_histogram_however_batches_come(
    batches: list[np.ndarray],
) -> None:
    found = activation_histogram(batches, bins=8)
    together = np.abs(np.concatenate(batches).astype(np.float64))
    for latent in range(3):
        values = together[:, latent][together[:, latent] > 0]
        if len(values) == 0:
            assert found.width[latent] == 0
            assert not found.counts[latent].any()
            continue
        width = found.width[latent]
        expected, _ = np.histogram(values / width, bins=np.arange(9))
        # The end of the last bin is the next one's beginning; here nothing may lie there.
        assert values.max() / width < 8
        np.testing.assert_array_equal(found.counts[latent], expected)
        assert 2 * values.max() / width >= 8, "half of the bins are in use"


def test_bins_are_a_power_of_two_and_batches_of_the_same_latents() -> None:
    with pytest.raises(InputError, match="12 bins; give at least one latent, and a power of two"):
        HistogramCounter(3, 12)
    counter = HistogramCounter(3)
    with pytest.raises(InputError, match="a batch of 2 latents; what came before has 3"):
        counter.add(np.ones((1, 2)))
    with pytest.raises(InputError, match="at least one batch"):
        activation_histogram([])
