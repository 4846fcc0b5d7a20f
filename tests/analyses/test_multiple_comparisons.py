import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.analyses.multiple_comparisons import benjamini_hochberg, bonferroni, holm

CORRECTIONS = {"bonferroni": bonferroni, "holm": holm, "fdr_bh": benjamini_hochberg}
p_lists = st.lists(
    st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.005, 0.01, 0.02, 0.05, 1.0])),
    min_size=1,
    max_size=12,
)


def plain_holm(p, alpha):
    """Reject the smallest remaining p while it is at most alpha / number remaining."""
    significant = np.zeros(len(p), dtype=bool)
    remaining = sorted(range(len(p)), key=lambda test: p[test])
    while remaining and p[remaining[0]] <= alpha / len(remaining):
        significant[remaining.pop(0)] = True
    return significant


def plain_benjamini_hochberg(p, alpha):
    """Reject the k smallest, for the largest k whose k-th p is at most alpha k / tests."""
    order = sorted(range(len(p)), key=lambda test: p[test])
    significant = np.zeros(len(p), dtype=bool)
    for k in range(len(p), 0, -1):
        if p[order[k - 1]] <= alpha * k / len(p):
            significant[order[:k]] = True
            break
    return significant


@given(p_lists)
@settings(max_examples=300, deadline=None)
def test_equal_the_plain_procedures(p):
    p = np.array(p)
    assert (bonferroni(p, 0.05) == (p < 0.05 / len(p))).all()
    assert (holm(p, 0.05) == plain_holm(p, 0.05)).all()
    assert (benjamini_hochberg(p, 0.05) == plain_benjamini_hochberg(p, 0.05)).all()


@given(p_lists)
@settings(max_examples=100, deadline=None)
def test_each_is_at_least_as_powerful_as_the_one_before(p):
    p = np.array(p)
    chosen = [correction(p, 0.05) for correction in CORRECTIONS.values()]
    assert (chosen[0] <= chosen[1]).all()
    assert (chosen[1] <= chosen[2]).all()


@pytest.mark.parametrize("name", CORRECTIONS)
def test_agrees_with_statsmodels(name):
    multitest = pytest.importorskip(
        "statsmodels.stats.multitest", reason="statsmodels is not installed"
    )
    p = np.random.default_rng(0).beta(0.3, 3.0, size=200)
    expected = multitest.multipletests(p, alpha=0.05, method=name)[0]
    assert (CORRECTIONS[name](p, 0.05) == expected).all()


@pytest.mark.parametrize("name", CORRECTIONS)
def test_errors_over_all_tests_stay_at_alpha_under_the_null(name):
    p = np.random.default_rng(1).random((2000, 25))
    rate = np.mean([CORRECTIONS[name](tests, 0.05).any() for tests in p])
    assert 0.035 < rate < 0.065


def test_the_false_discovery_rate_is_held_among_true_effects():
    random = np.random.default_rng(2)
    shares = []
    for _ in range(500):
        p = np.concatenate([random.random(40), random.beta(0.05, 10, size=20)])
        significant = benjamini_hochberg(p, 0.1)
        shares.append(significant[:40].sum() / max(1, significant.sum()))
    assert 0.04 < np.mean(shares) < 0.09  # its bound is 0.1 times the share of true nulls
