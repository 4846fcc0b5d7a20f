"""Mantel's test: permuted scores against matrices permuted one by one, uniform p, and power."""

import numpy as np
import pytest
from scipy import stats

from palinka.analyses.representational_similarity import representational_similarity
from palinka.analyses.stats import similarity as matrix_comparison
from palinka.analyses.stats.similarity import compare_matrices, cosine_similarity, mantel_scores

COMPARISONS = ("pearson", "spearman", "kendall", "cka")


def cosines(items, width, seed):
    return cosine_similarity(np.random.default_rng(seed).normal(size=(items, width)))


@pytest.mark.parametrize("compare", COMPARISONS)
@pytest.mark.parametrize("entries_at_once", [1, 300, 2**22])
def test_equals_matrices_permuted_one_by_one(compare, entries_at_once, monkeypatch):
    monkeypatch.setattr(matrix_comparison, "ENTRIES_AT_ONCE", entries_at_once)
    x, y = cosines(9, 5, seed=0), cosines(9, 4, seed=1)
    scores = mantel_scores(x, y, compare, 20, np.random.default_rng(3))
    random = np.random.default_rng(3)
    orders = random.permuted(np.tile(np.arange(9), (20, 1)), axis=1)
    expected = [compare_matrices(x, y[np.ix_(order, order)], compare) for order in orders]
    np.testing.assert_allclose(scores, expected, atol=1e-12)


@pytest.mark.parametrize("compare", COMPARISONS)
def test_three_words_have_at_most_six_scores(compare):
    x = cosines(3, 4, seed=2)
    scores = mantel_scores(x, x, compare, 600, np.random.default_rng(0))
    assert len(np.unique(scores.round(9))) <= 6
    # A sixth of the permutations leave everything as it is.
    result = representational_similarity(x, x, compare=compare, permutations=600)
    assert result.p_value > 0.1


def p_values(compare, simulations, shared, seed, permutations=99):
    random = np.random.default_rng(seed)
    found = np.empty(simulations)
    for simulation in range(simulations):
        hidden = random.normal(size=(12, 3)) * shared
        x = hidden @ random.normal(size=(3, 6)) + random.normal(size=(12, 6))
        y = hidden @ random.normal(size=(3, 8)) + random.normal(size=(12, 8))
        # Words differ in how alike they are to all others: pairs are far from independent.
        x, y = x + random.exponential(size=(12, 1)), y + random.exponential(size=(12, 1))
        k, l = cosine_similarity(x), cosine_similarity(y)  # noqa: E741
        null = mantel_scores(k, l, compare, permutations, random)
        found[simulation] = (1 + (null >= compare_matrices(k, l, compare)).sum()) / (
            permutations + 1
        )
    return found


def assert_uniform(p, permutations=99):
    """p takes the values 1/(n+1) … 1, each as often as any other."""
    counts = np.histogram(p, bins=np.arange(0, 11) / 10 + 0.5 / (permutations + 1))[0]
    assert stats.chisquare(counts).pvalue > 1e-3
    assert stats.binomtest(int((p <= 0.05).sum()), len(p), 0.05).pvalue > 1e-3


@pytest.mark.parametrize("compare", COMPARISONS)
def test_p_is_uniform_under_the_null(compare):
    assert_uniform(p_values(compare, 500, shared=0.0, seed=10))


@pytest.mark.slow
@pytest.mark.parametrize("compare", COMPARISONS)
def test_p_is_uniform_under_the_null_over_many_draws(compare):
    assert_uniform(p_values(compare, 2000, shared=0.0, seed=11))


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
