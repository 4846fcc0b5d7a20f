import numpy as np
import pytest
from scipy import stats

from palinka.analyses.stats import permutation
from palinka.analyses.stats.permutation import max_t, permutation_p_values
from palinka.analyses.unit_tuning import unit_tuning

SIZES = [1, 30, 1 << 22]


def signs(permutations, items, seed):
    return np.where(np.random.default_rng(seed).random((permutations, items)) < 0.5, -1.0, 1.0)


def null_p(largest, observed):
    return (1 + (largest[:, None] >= observed * (1 - 1e-10)).sum(axis=0)) / (len(largest) + 1)


@pytest.mark.parametrize("size", SIZES)
def test_paired_equals_flipping_signs_one_by_one(size, monkeypatch):
    monkeypatch.setattr(permutation, "CHUNK_ELEMENTS", size)
    differences = np.random.default_rng(0).normal(0.4, size=(9, 6))
    t = stats.ttest_1samp(differences, 0).statistic
    p, _ = max_t(t, [differences], 40, seed=3)
    largest = np.array(
        [np.abs(stats.ttest_1samp(s[:, None] * differences, 0)[0]).max() for s in signs(40, 9, 3)]
    )
    np.testing.assert_allclose(p, null_p(largest, np.abs(t)))


@pytest.mark.parametrize("size", SIZES)
def test_welch_equals_flipping_residuals_one_by_one(size, monkeypatch):
    monkeypatch.setattr(permutation, "CHUNK_ELEMENTS", size)
    random = np.random.default_rng(1)
    a, b = random.normal(size=(8, 5)), random.normal(0.8, 2.0, size=(11, 5))
    t = stats.ttest_ind(b, a, equal_var=False).statistic
    p, _ = max_t(t, [-a, b], 40, seed=3)
    largest = []
    for s in signs(40, 19, 3)[:, :, None]:
        residuals = s[:8] * (a - a.mean(axis=0)), s[8:] * (b - b.mean(axis=0))
        flipped = stats.ttest_ind(residuals[1], residuals[0], equal_var=False).statistic
        largest.append(np.abs(flipped).max())
    np.testing.assert_allclose(p, null_p(np.array(largest), np.abs(t)))


def test_flips_that_make_all_differences_equal_are_as_high_as_the_same_data():
    # Two of the 32 flips leave five equal signs: an unbounded t, whatever the rounding.
    differences = np.array([[1.0], [1.0], [1.0], [1.0], [1.0 + 1e-9]])
    t = stats.ttest_1samp(differences, 0).statistic
    assert max_t(t, [differences], 2000, seed=0)[0] == pytest.approx(1 / 16, abs=0.02)


def smallest_adjusted_p(n_a, n_b, sd, units, shared, draws, seed, test="welch"):
    """Smallest adjusted p in each of many data sets; `shared` noise correlates the units."""
    random = np.random.default_rng(seed)
    found = np.empty(draws)
    for draw in range(draws):
        a = random.normal(size=(n_a, units)) + shared * random.normal(size=(n_a, 1))
        b = random.normal(size=(n_b, units)) + shared * random.normal(size=(n_b, 1))
        result = unit_tuning(a, sd * b, test, "max_t", permutations=99, seed=draw)
        found[draw] = result.p_adjusted.min()
    return found


# Every design is simulated in test_validity.py.
def test_welch_holds_its_level_where_the_small_sample_varies_most():
    p = smallest_adjusted_p(8, 30, 1 / 3, 20, 0.0, draws=1500, seed=1)
    assert 0.03 <= (p <= 0.05).mean() <= 0.07


def test_paired_p_is_uniform_under_the_null(assert_uniform):
    p = smallest_adjusted_p(10, 10, 1.0, 10, 1.0, draws=500, seed=2, test="paired")
    assert_uniform(p, steps=100)


def test_counts_what_is_at_least_as_good_but_for_rounding():
    observed = np.array([0.0, 2.0, 2.5, 4.0])
    assert permutation_p_values(observed, [3.0, 1.0, 2.0, 2.0]).tolist() == [1.0, 0.8, 0.4, 0.2]
    assert permutation_p_values(0.1 + 0.2, [0.3]) == 1.0
    assert permutation_p_values(0.3, [0.1 + 0.2]) == 1.0
