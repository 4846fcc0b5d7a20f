import numpy as np
import pytest

from palinka.analyses.eigenvalue_null import (
    label_free_scores,
    largest_eigenvalues,
    permutation_null,
)
from palinka.errors import InputError


def data(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(21, 9)) * np.arange(1, 10) + 5.0


def test_scores_are_those_of_all_items_about_their_grand_mean() -> None:
    x = data()
    scores = label_free_scores(x, 90.0)
    values = np.linalg.eigvalsh(np.cov(x, rowvar=False))[::-1]
    shares = 100 * values.cumsum() / values.sum()
    r = next(i for i, share in enumerate(shares) if share > 90.0)
    np.testing.assert_allclose(np.cov(scores, rowvar=False), np.diag(values[:r]), atol=1e-9 * 81)


@pytest.mark.parametrize("shrinkage", [0.05, "ledoit_wolf", "oas"])
def test_null_is_of_the_same_recipe_for_every_draw(shrinkage: float) -> None:
    x = data()
    observed, null = permutation_null(x, 12, 95.0, shrinkage, 70, seed=5)
    assert null.shape == (70, 2)
    scores = label_free_scores(x, 95.0)
    labels = np.arange(21) < 12
    draws = np.random.default_rng(5).permuted(np.tile(labels, (70, 1)), axis=1)
    np.testing.assert_allclose(null, largest_eigenvalues(scores, draws, shrinkage), rtol=1e-8)
    np.testing.assert_allclose(
        observed, largest_eigenvalues(scores, labels[None], shrinkage)[0], rtol=1e-8
    )


def test_draws_that_repeat_the_true_labels_tie_exactly() -> None:
    x = np.random.default_rng(1).normal(size=(6, 4))
    observed, null = permutation_null(x, 3, 95.0, 0.01, 400, seed=0)
    # One in twenty labelings of six items is the true one, and one is its mirror image.
    assert 5 < (null == observed).all(axis=1).sum() < 50


def test_too_many_components_for_no_shrinkage_are_refused() -> None:
    with pytest.raises(InputError, match=r"9 principal components need more than 8 items"):
        permutation_null(data()[:17], 8, 100.0, 0.0, 5, seed=0)
