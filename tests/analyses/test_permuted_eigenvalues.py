import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.analyses.stats.eigenvalue_null import (
    contrast_scores,
    largest_eigenvalues,
    permuted_eigenvalues,
)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_a=st.integers(3, 12),
    n_b=st.integers(3, 12),
    d=st.integers(1, 30),
    shrinkage=st.sampled_from([0.001, 0.01, 0.3, 0.99]),
    skew=st.sampled_from([1.0, 100.0]),
)
def test_equals_the_plain_way(
    seed: int, n_a: int, n_b: int, d: int, shrinkage: float, skew: float
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_a + n_b, d)) * np.geomspace(skew, 1.0, d)
    scores = contrast_scores(x[:n_a], x[n_a:], 100.0)
    labels = np.arange(len(scores)) < n_a - 1
    in_a = rng.permuted(np.tile(labels, (4, 1)), axis=1)
    found = permuted_eigenvalues(scores, in_a, shrinkage)
    r = scores.shape[1]
    for row, chosen in zip(found, in_a, strict=True):
        a, b = (
            (1 - shrinkage) * s + shrinkage * np.linalg.eigvalsh(s).mean() * np.eye(r)
            for part in (scores[chosen], scores[~chosen])
            for s in (part.T @ part / len(part),)
        )
        # Either side is as exact as the inverse of the less regular covariance.
        np.testing.assert_allclose(row[0], scipy.linalg.eigvalsh(a, b)[-1], rtol=1e-8)
        np.testing.assert_allclose(row[1], scipy.linalg.eigvalsh(b, a)[-1], rtol=1e-8)
    np.testing.assert_allclose(largest_eigenvalues(scores, in_a, shrinkage), found, rtol=1e-7)


def test_without_shrinkage_while_both_covariances_are_regular() -> None:
    rng = np.random.default_rng(0)
    scores = contrast_scores(rng.normal(size=(13, 5)), rng.normal(size=(17, 5)), 100.0)
    in_a = rng.permuted(np.tile(np.arange(28) < 12, (5, 1)), axis=1)
    np.testing.assert_allclose(
        permuted_eigenvalues(scores, in_a, 0.0), largest_eigenvalues(scores, in_a, 0.0), rtol=1e-9
    )


def test_the_same_labeling_gives_the_same_bits() -> None:
    rng = np.random.default_rng(1)
    scores = contrast_scores(*rng.normal(size=(2, 10, 50)), 99.0)
    in_a = rng.permuted(np.tile(np.arange(18) < 8, (3, 1)), axis=1)
    np.testing.assert_array_equal(
        permuted_eigenvalues(scores, in_a, 0.01)[2],
        permuted_eigenvalues(scores, in_a[2:], 0.01)[0],
    )


def test_a_labeling_that_leaves_a_condition_without_variance_is_beyond_all_others() -> None:
    scores = contrast_scores(np.zeros((3, 4)), np.random.default_rng(2).normal(size=(6, 4)), 100.0)
    largest = permuted_eigenvalues(scores, (np.arange(7) < 2)[None], 0.01)
    assert largest[0, 0] == pytest.approx(0.0, abs=1e-9)
    assert largest[0, 1] > 1e9
