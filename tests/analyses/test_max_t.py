import sys

import numpy as np
import pytest
from scipy import stats

from palinka.analyses import max_t  # noqa: F401
from palinka.analyses.max_t import paired_max_t, unpaired_max_t

SIZES = [1, 30, 1 << 22]


def null_p(largest, observed):
    return (1 + (largest[:, None] >= observed * (1 - 1e-10)).sum(axis=0)) / (len(largest) + 1)


@pytest.mark.parametrize("size", SIZES)
def test_paired_equals_flipping_signs_one_by_one(size, monkeypatch):
    monkeypatch.setattr(sys.modules["palinka.analyses.max_t"], "WORKING_SIZE", size)
    differences = np.random.default_rng(0).normal(0.4, size=(9, 6))
    p = paired_max_t(differences, 40, seed=3)
    signs = np.where(np.random.default_rng(3).random((40, 9)) < 0.5, -1.0, 1.0)
    largest = np.array(
        [np.abs(stats.ttest_1samp(sign[:, None] * differences, 0)[0]).max() for sign in signs]
    )
    np.testing.assert_allclose(p, null_p(largest, np.abs(stats.ttest_1samp(differences, 0)[0])))


@pytest.mark.parametrize("size", SIZES)
def test_unpaired_equals_dealing_one_by_one(size, monkeypatch):
    monkeypatch.setattr(sys.modules["palinka.analyses.max_t"], "WORKING_SIZE", size)
    random = np.random.default_rng(1)
    a, b = random.normal(size=(7, 5)), random.normal(0.8, 2.0, size=(11, 5))
    p = unpaired_max_t(a, b, 40, seed=3)
    labels = np.random.default_rng(3).permuted(np.tile([0] * 7 + [1] * 11, (40, 1)), axis=1)
    pooled = np.concatenate([a, b])

    def t(label):
        return np.abs(
            stats.ttest_ind(pooled[label == 1], pooled[label == 0], equal_var=False).statistic
        )

    largest = np.array([t(label).max() for label in labels])
    np.testing.assert_allclose(p, null_p(largest, t(np.array([0] * 7 + [1] * 11))))


def test_equal_differences_after_a_flip_are_an_infinite_t():
    # One flip in four of two items of opposite signs makes both differences equal.
    differences = np.array([[1.0], [-1.0]])
    assert paired_max_t(differences, 200, seed=0) == 1.0
    a, b = np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]])
    assert unpaired_max_t(a, b, 50, seed=0) == 1.0
    perfect = unpaired_max_t(np.array([[0.0], [0.0], [0.001]]), np.full((5, 1), 1.0), 500, seed=0)
    assert perfect == pytest.approx(1 / 56, abs=0.02)


def family_p(kind, draws, seed, effect=0.0):
    """The smallest corrected p of 10 correlated units, in each of many data sets."""
    random = np.random.default_rng(seed)
    found = np.empty(draws)
    for draw in range(draws):
        shared = random.normal(size=(22, 1))
        data = random.standard_t(5, size=(22, 10)) + shared
        data[:10, 0] += effect
        if kind == "paired":
            found[draw] = paired_max_t(data[:10], 99, seed=draw).min()
        else:
            found[draw] = unpaired_max_t(data[10:], data[:10], 99, seed=draw).min()
    return found


@pytest.mark.parametrize("kind", ["paired", "unpaired"])
def test_p_is_uniform_under_the_null(kind, assert_uniform):
    assert_uniform(family_p(kind, 500, seed=1), steps=100)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["paired", "unpaired"])
def test_p_is_uniform_under_the_null_over_many_draws(kind, assert_uniform):
    assert_uniform(family_p(kind, 2000, seed=2), steps=100)


@pytest.mark.parametrize("kind", ["paired", "unpaired"])
def test_an_effect_is_found(kind):
    assert (family_p(kind, 60, seed=3, effect=4.0) <= 0.05).mean() > 0.9
