from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from palinka.analyses.representational_similarity import representational_similarity
from palinka.analyses.stats import similarity
from palinka.analyses.stats.similarity import (
    compare_matrices,
    cosine_similarity,
    dense_ranks,
    kendall_tau_a,
    mantel_scores,
)

COMPARISONS = ("pearson", "spearman", "kendall", "cka")


def cosines(items, width, seed):
    return cosine_similarity(np.random.default_rng(seed).normal(size=(items, width)))


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1.0, 1e200, 1e308])
def test_length_does_not_matter(scale):
    x = np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    half = np.sqrt(0.5)
    expected = [[1, half, -1, 0], [half, 1, -half, 0], [-1, -half, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(cosine_similarity(x * scale), expected, atol=1e-12)


def test_is_exactly_symmetric_with_ones_on_the_diagonal():
    similarity = cosines(40, 700, seed=0)
    assert (similarity == similarity.T).all()
    assert (similarity.diagonal() == 1.0).all()
    assert np.abs(similarity).max() <= 1.0


def plain_weighted_tau_a(x, y, weights):
    pairs = list(combinations(range(len(x)), 2))
    shares = [weights[i] * weights[j] for i, j in pairs]
    signs = [np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in pairs]
    return np.dot(shares, signs) / sum(shares)


samples = st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.integers(0, 3))


@settings(deadline=None)  # the first call compiles
@given(st.lists(samples, min_size=2, max_size=40))
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


@pytest.mark.parametrize("compare", COMPARISONS)
@pytest.mark.parametrize("chunk_elements", [1, 300, 2**22])
def test_equals_matrices_permuted_one_by_one(compare, chunk_elements, monkeypatch):
    monkeypatch.setattr(similarity, "CHUNK_ELEMENTS", chunk_elements)
    x, y = cosines(9, 5, seed=0), cosines(9, 4, seed=1)
    scores = mantel_scores(x, y, compare, 20, np.random.default_rng(3))
    random = np.random.default_rng(3)
    orders = random.permuted(np.tile(np.arange(9), (20, 1)), axis=1)
    expected = [compare_matrices(x, y[np.ix_(order, order)], compare) for order in orders]
    np.testing.assert_allclose(scores, expected, atol=1e-12)


@pytest.mark.parametrize("compare", COMPARISONS)
def test_a_sixth_of_the_permutations_of_three_words_leave_everything_as_it_is(compare):
    x = cosines(3, 4, seed=2)
    result = representational_similarity(x, x, compare=compare, permutations=600)
    assert result.p_value > 0.1


def p_values(compare, simulations, shared, seed):
    random = np.random.default_rng(seed)
    found = np.empty(simulations)
    for simulation in range(simulations):
        hidden = random.normal(size=(12, 3)) * shared
        x = hidden @ random.normal(size=(3, 6)) + random.normal(size=(12, 6))
        y = hidden @ random.normal(size=(3, 8)) + random.normal(size=(12, 8))
        # Words differ in how alike they are to all others: pairs are far from independent.
        x, y = x + random.exponential(size=(12, 1)), y + random.exponential(size=(12, 1))
        k, l = cosine_similarity(x), cosine_similarity(y)  # noqa: E741
        null = mantel_scores(k, l, compare, 99, random)
        found[simulation] = (1 + (null >= compare_matrices(k, l, compare)).sum()) / 100
    return found


@pytest.mark.parametrize("compare", COMPARISONS)
def test_p_is_uniform_under_the_null(compare, assert_uniform):
    assert_uniform(p_values(compare, 500, shared=0.0, seed=10), steps=100)


@pytest.mark.parametrize("compare", COMPARISONS)
def test_shared_structure_is_found(compare):
    assert (p_values(compare, 60, shared=1.5, seed=12) <= 0.05).mean() > 0.9


def test_the_p_value_counts_what_is_as_good():
    random = np.random.default_rng(13)
    x, y = random.normal(size=(2, 10, 4))
    result = representational_similarity(x, y, permutations=99, seed=5)
    shuffles, _ = np.random.default_rng(5).spawn(2)
    null = mantel_scores(result.similarity_x, result.similarity_y, "pearson", 99, shuffles)
    assert result.p_value == (1 + (null >= result.score).sum()) / 100
