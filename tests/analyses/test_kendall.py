"""The counting of concordant pairs, against every pair looked at, and SciPy."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from palinka.analyses.stats.similarity import dense_ranks, kendall_tau_a


def plain_weighted_tau_a(x, y, weights):
    pairs = list(combinations(range(len(x)), 2))
    shares = [weights[i] * weights[j] for i, j in pairs]
    signs = [np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in pairs]
    return np.dot(shares, signs) / sum(shares)


@settings(deadline=None)  # the first call compiles
@given(
    st.lists(
        st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.integers(0, 3)),
        min_size=2,
        max_size=40,
    )
)
def test_equals_every_pair_looked_at(samples):
    x, y, weights = np.array(samples, dtype=np.float64).T.copy()
    tau = kendall_tau_a(dense_ranks(x), dense_ranks(y), weights)
    if (weights > 0).sum() < 2:
        assert np.isnan(tau)
    else:
        assert tau == pytest.approx(plain_weighted_tau_a(x, y, weights), abs=1e-12)


def test_is_scipys_tau_b_where_nothing_ties():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 3000))
    y += x
    tau = kendall_tau_a(dense_ranks(x), dense_ranks(y), np.ones(3000))
    assert tau == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
