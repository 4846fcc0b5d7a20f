from itertools import product

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.analyses.stats.eigenvalue_null import (
    HALVES,
    contrast_scores,
    heldout_ratio,
    largest_eigenvalues,
    permutation_null,
    permuted_eigenvalues,
)
from palinka.errors import InputError


def data(n_a: int = 12, n_b: int = 9) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(n_a + n_b, 9)) * np.arange(1, 10) + 5.0
    return x[:n_a], x[n_a:]


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
    here = permutation_null(a, b, 95.0, 0.01, 20, pairs=False, seed=0)
    there = permutation_null(a + np.arange(9.0) * 20.0, b, 95.0, 0.01, 20, pairs=False, seed=0)
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-8)


def test_draws_that_repeat_the_true_labels_tie_exactly() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 4, 4))
    observed, null = permutation_null(a, b, 95.0, 0.01, 400, pairs=False, seed=0)
    # Of the twenty labelings of six contrasts one is the true one, and one is its mirror image.
    assert 5 < (null == observed).all(axis=1).sum() < 50


def test_too_many_components_for_no_shrinkage_are_refused() -> None:
    with pytest.raises(InputError, match=r"9 principal components need more than 8 items"):
        permutation_null(*data(9, 8), 100.0, 0.0, 5, pairs=False, seed=0)


sizes = st.tuples(st.integers(3, 12), st.integers(3, 12), st.integers(1, 30))
shrinkages, skews = st.sampled_from([0.001, 0.01, 0.3, 0.99]), st.sampled_from([1.0, 100.0])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), sizes, shrinkages, skews)
def test_equals_the_plain_way(
    seed: int, size: tuple[int, int, int], shrinkage: float, skew: float
) -> None:
    n_a, n_b, d = size
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


def test_compiled_without_shrinkage_and_always_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    scores = contrast_scores(rng.normal(size=(13, 5)), rng.normal(size=(17, 5)), 100.0)
    in_a = rng.permuted(np.tile(np.arange(28) < 12, (5, 1)), axis=1)
    found = permuted_eigenvalues(scores, in_a, 0.0)
    np.testing.assert_allclose(found, largest_eigenvalues(scores, in_a, 0.0), rtol=1e-9)
    np.testing.assert_array_equal(permuted_eigenvalues(scores, in_a[2:], 0.0), found[2:])


def test_a_labeling_that_leaves_a_condition_without_variance_is_beyond_all_others() -> None:
    scores = contrast_scores(np.zeros((3, 4)), np.random.default_rng(2).normal(size=(6, 4)), 100.0)
    largest = permuted_eigenvalues(scores, (np.arange(7) < 2)[None], 0.01)
    assert largest[0, 0] == pytest.approx(0.0, abs=1e-9)
    assert largest[0, 1] > 1e9


@pytest.mark.parametrize("r", [4, 12])  # fewer and more than items to fit
def test_heldout_ratio_equals_the_plain_transcription(r: int) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(11, r)) * np.arange(1, r + 1), rng.normal(size=(8, r))
    draw_a, draw_b = np.random.default_rng(9), np.random.default_rng(9)
    ratios = []
    for _ in range(HALVES):
        order_a, order_b = draw_a.permutation(11), draw_b.permutation(8)
        s_b = np.cov(b[order_b[:4]], rowvar=False)
        denominator = 0.95 * s_b + 0.05 * np.trace(s_b) / r * np.eye(r)
        w = scipy.linalg.eigh(np.cov(a[order_a[:6]], rowvar=False), denominator)[1][:, -1]
        top, bottom = a[order_a[6:]] @ w, b[order_b[4:]] @ w
        ratios.append(top.var(ddof=1) / bottom.var(ddof=1))
    found, _ = heldout_ratio(a, b, 0.05, seed=9)
    expected = [np.exp(np.log(ratios).mean()), *np.percentile(ratios, [2.5, 97.5])]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, 8, 20])
def test_the_mean_log_ratio_is_zero_under_the_null(n: int) -> None:
    rng = np.random.default_rng(n)
    logs = np.log(
        [heldout_ratio(*rng.normal(size=(2, n, 5)), 0.01, seed)[0][0] for seed in range(1_000)]
    )
    assert abs(logs.mean()) < 4 * logs.std() / np.sqrt(len(logs))
    assert logs.std() < 1.0


def test_pairs_are_held_out_together() -> None:
    # Either condition holds the same items: in every half, their variances are the same too.
    x = np.random.default_rng(2).normal(size=(10, 3))
    for ratio in heldout_ratio(x, x, 0.1, seed=0):
        np.testing.assert_allclose(ratio, 1.0)


def test_halves_without_a_ratio_are_reported() -> None:
    x = np.random.default_rng(3).normal(size=(8, 6))
    with pytest.raises(np.linalg.LinAlgError):
        heldout_ratio(x, x, 0.0, seed=0)
    few = np.full((8, 6), 0.1)  # its variance is rounding
    few[0] = x[0]
    with pytest.raises(np.linalg.LinAlgError, match="half of the items do not vary"):
        heldout_ratio(few, x, 0.1, seed=0)
