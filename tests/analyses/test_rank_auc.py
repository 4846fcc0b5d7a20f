import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from palinka.analyses.stats.latents import MAX_FLOAT32_ROWS, auc_of_ranks, column_ranks, rank_auc


def plain(values, targets):
    """The share of pairs that are in the right order; ties count one half."""
    wins = [
        (inside > outside) + 0.5 * (inside == outside)
        for inside in values[targets]
        for outside in values[~targets]
    ]
    return np.mean(wins)


@given(st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=2, max_size=25))
@settings(max_examples=100, deadline=None)
def test_equals_counting_pairs(rows):
    targets = np.array([target for _, target in rows])
    if targets.all() or not targets.any():
        return
    values = np.array([[value, -value] for value, _ in rows], dtype=np.float32)
    expected = plain(values[:, 0], targets)
    assert rank_auc(values, targets) == pytest.approx([expected, 1 - expected], abs=1e-12)


def test_perfect_and_useless_detectors():
    targets = np.array([True, True, False, False])
    values = np.array([[2.0, 0.0, 1.0], [3.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert rank_auc(values, targets).tolist() == [1.0, 0.5, 0.5]


def test_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    random = np.random.default_rng(0)
    values = random.poisson(1.0, size=(80, 5)).astype(float)
    targets = random.random(80) < 0.3
    expected = [metrics.roc_auc_score(targets, column) for column in values.T]
    np.testing.assert_allclose(rank_auc(values, targets), expected, rtol=1e-12)


@pytest.mark.parametrize("rows", [50, MAX_FLOAT32_ROWS, MAX_FLOAT32_ROWS + 1])
def test_many_labellings_are_exact_in_the_dtype_of_the_ranks(rows):
    random = np.random.default_rng(1)
    values = random.integers(0, rows // 2, size=(rows, 3)).astype(float)
    targets = random.random((4, rows)) < np.array([[0.1], [0.3], [0.5], [0.9]])
    found = auc_of_ranks(column_ranks(values), targets)
    ranks = rankdata(values, axis=0)
    for mask, of_mask in zip(targets, found, strict=True):
        n = mask.sum()
        wins = ranks[mask].sum(axis=0) - n * (n + 1) / 2
        np.testing.assert_array_equal(of_mask, wins / (n * (rows - n)))
