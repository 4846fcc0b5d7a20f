import numpy as np
import pytest
import scipy.linalg

from palinka.analyses.stats.eigenvalue_null import HALVES, heldout_ratio, leading_filter


@pytest.mark.parametrize(("n_more", "n_less"), [(6, 7), (40, 30)])
def test_leading_filter_is_the_first_generalized_eigenvector(n_more: int, n_less: int) -> None:
    rng = np.random.default_rng(0)
    more, less = rng.normal(size=(n_more, 12)) * np.arange(1, 13), rng.normal(size=(n_less, 12))
    s = np.cov(less, rowvar=False)
    denominator = 0.9 * s + 0.1 * np.trace(s) / 12 * np.eye(12)
    _, vectors = scipy.linalg.eigh(np.cov(more, rowvar=False), denominator)
    found, expected = leading_filter(more, less, 0.1), vectors[:, -1]
    found = found / np.linalg.norm(found)
    expected = expected / np.linalg.norm(expected)
    assert abs(found @ expected) == pytest.approx(1.0, abs=1e-9)


def test_equals_the_plain_transcription() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(11, 4)) * [5, 1, 1, 1], rng.normal(size=(8, 4))
    draw_a, draw_b = np.random.default_rng(9), np.random.default_rng(9)
    ratios = []
    for _ in range(HALVES):
        order_a, order_b = draw_a.permutation(11), draw_b.permutation(8)
        s_b = np.cov(b[order_b[:4]], rowvar=False)
        denominator = 0.95 * s_b + 0.05 * np.linalg.eigvalsh(s_b).mean() * np.eye(4)
        w = scipy.linalg.eigh(np.cov(a[order_a[:6]], rowvar=False), denominator)[1][:, -1]
        top, bottom = a[order_a[6:]] @ w, b[order_b[4:]] @ w
        ratios.append(top.var(ddof=1) / bottom.var(ddof=1))
    found, _ = heldout_ratio(a, b, 0.05, seed=9)
    np.testing.assert_allclose(
        found, [np.prod(ratios) ** (1 / HALVES), *np.percentile(ratios, [2.5, 97.5])], rtol=1e-8
    )


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
