from itertools import product

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from palinka.analyses.stats.eigenvalue_null import (
    contrast_scores,
    largest_eigenvalues,
    permutation_null,
)
from palinka.errors import InputError


def data(n_a: int = 12, n_b: int = 9) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(n_a + n_b, 9)) * np.arange(1, 10) + 5.0
    return x[:n_a], x[n_a:]


def test_contrasts_have_the_scatter_of_items_centered_by_condition() -> None:
    a, b = data()
    scores = contrast_scores(a + 100.0, b, 90.0)
    x = np.concatenate([a - a.mean(axis=0), b - b.mean(axis=0)])
    values = np.linalg.eigvalsh(np.cov(x, rowvar=False))[::-1]
    shares = 100 * values.cumsum() / values.sum()
    r = next(i for i, share in enumerate(shares) if share > 90.0)
    assert scores.shape == (19, r)
    np.testing.assert_allclose(scores.T @ scores / 20, np.diag(values[:r]), atol=1e-9 * 81)
    every = contrast_scores(a + 100.0, b, 100.0)
    contrasts = scipy.linalg.block_diag(householder(12), householder(9))
    rows = contrasts @ np.concatenate([a, b])
    np.testing.assert_allclose(every @ every.T, rows @ rows.T, atol=1e-7)


def householder(n: int) -> np.ndarray:
    """`(n - 1, n)`, orthonormal rows that do not see the mean."""
    axis = np.full(n, n**-0.5)
    axis[-1] += 1.0
    return (np.eye(n) - 2.0 * np.outer(axis, axis) / (axis @ axis))[:-1]


@pytest.mark.parametrize("shrinkage", [0.05, "ledoit_wolf", "oas"])
def test_null_is_of_the_same_recipe_for_every_draw(shrinkage: float) -> None:
    a, b = data()
    observed, null = permutation_null(a, b, 95.0, shrinkage, 70, pairs=False, seed=5)
    assert null.shape == (70, 2)
    scores = contrast_scores(a, b, 95.0)
    labels = np.arange(19) < 11
    draws = np.random.default_rng(5).permuted(np.tile(labels, (70, 1)), axis=1)
    np.testing.assert_allclose(null, largest_eigenvalues(scores, draws, shrinkage), rtol=1e-8)
    np.testing.assert_allclose(
        observed, largest_eigenvalues(scores, labels[None], shrinkage)[0], rtol=1e-8
    )


def test_labels_are_exchanged_within_pairs() -> None:
    a, b = data(7, 7)
    observed, null = permutation_null(a, b, 95.0, 0.01, 400, pairs=True, seed=0)
    scores = contrast_scores(a, b, 95.0)
    kept = np.array(list(product([True, False], repeat=6)))
    all_swaps = largest_eigenvalues(scores, np.concatenate([kept, ~kept], axis=1), 0.01)
    np.testing.assert_allclose(observed, all_swaps[0], rtol=1e-8)
    distances = np.abs(null[:, None] / all_swaps - 1.0).max(axis=2)
    assert (distances.min(axis=1) < 1e-8).all()
    counts = np.bincount(distances.argmin(axis=1), minlength=64)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3  # every set of swaps is equally likely


def test_a_difference_of_means_does_not_change_the_null() -> None:
    a, b = data()
    for here, there in zip(
        permutation_null(a, b, 95.0, 0.01, 20, pairs=False, seed=0),
        permutation_null(a + np.arange(9.0) * 20.0, b, 95.0, 0.01, 20, pairs=False, seed=0),
        strict=True,
    ):
        np.testing.assert_allclose(there, here, rtol=1e-8)


def test_draws_that_repeat_the_true_labels_tie_exactly() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 4, 4))
    observed, null = permutation_null(a, b, 95.0, 0.01, 400, pairs=False, seed=0)
    # Of the twenty labelings of six contrasts one is the true one, and one is its mirror image.
    assert 5 < (null == observed).all(axis=1).sum() < 50


def test_too_many_components_for_no_shrinkage_are_refused() -> None:
    with pytest.raises(InputError, match=r"9 principal components need more than 8 items"):
        permutation_null(*data(9, 8), 100.0, 0.0, 5, pairs=False, seed=0)
