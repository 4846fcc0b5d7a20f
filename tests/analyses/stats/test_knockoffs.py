"""Selection with a bound on false discoveries, against peers and simulations."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import mannwhitneyu
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportions_ztest

from palinka.analyses.stats import knockoffs as module
from palinka.analyses.stats.comparison import adjusted_p_values
from palinka.analyses.stats.covariance import shrinkage_intensity, shrunk
from palinka.analyses.stats.knockoffs import (
    benjamini_yekutieli,
    candidates,
    compare_frequencies,
    e_benjamini_hochberg,
    e_values,
    gaussian_knockoffs,
    importance,
    knockoffs,
    mann_whitney,
    threshold,
)
from palinka.errors import InputError
from palinka.interventions.logistic import logistic_path

Q = 0.1


def correlated(random: Any, rows: int, columns: int, rho: float = 0.5) -> Any:
    """Gaussian columns whose correlation falls with their distance."""
    x = random.normal(size=(rows, columns))
    for at in range(1, columns):
        x[:, at] = rho * x[:, at - 1] + np.sqrt(1 - rho**2) * x[:, at]
    return x


def labelled(seed: int, size: float) -> tuple[Any, Any, set[int]]:
    """Columns, labels, and the 30 of 100 columns that they depend on."""
    random = np.random.default_rng(seed)
    x, true = correlated(random, 1000, 100), random.choice(100, 30, replace=False)
    y = random.random(1000) < expit(x[:, true] @ (size * random.choice([-1, 1], 30)))
    return x, y, {*true.tolist()}


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.5))
def test_bounds_of_false_discoveries_are_those_of_statsmodels(seed: int, alpha: float) -> None:
    random = np.random.default_rng(seed)
    p = random.random(40) ** random.choice([1, 3, 6])
    assert (benjamini_yekutieli(p, alpha) == multipletests(p, alpha, "fdr_by")[0]).all()
    adjusted = adjusted_p_values(p, "benjamini_hochberg")
    np.testing.assert_allclose(adjusted, multipletests(p, alpha, "fdr_bh")[1], rtol=1e-12)


def test_p_values_of_mann_and_whitney() -> None:
    random = np.random.default_rng(0)
    x, y = np.maximum(random.normal(size=(50, 4)), 0.0).astype(np.float32), np.arange(50) < 20
    x[:, 2] = 1.0
    peer = [mannwhitneyu(one[y], one[~y], method="asymptotic").pvalue for one in x.T]
    np.testing.assert_allclose(mann_whitney(x, y), np.where(np.arange(4) == 2, 1.0, peer))


def test_frequencies_are_compared_as_by_statsmodels() -> None:
    random = np.random.default_rng(5)
    y, x = np.arange(90) < 30, random.random((90, 6)) < [0.0, 0.1, 0.3, 0.5, 0.9, 1.0]
    found = compare_frequencies(x, y)
    for at, row in enumerate(zip(*found, strict=True)):
        counts, n = [x[y, at].sum(), x[~y, at].sum()], [30, 60]
        bounds = confint_proportions_2indep(counts[0], 30, counts[1], 60, method="newcomb")
        p = proportions_ztest(counts, n)[1] if 0 < sum(counts) < 90 else 1.0
        np.testing.assert_allclose(row, [x[y, at].mean() - x[~y, at].mean(), *bounds, p])


def test_candidates_are_chosen_by_energy_among_those_in_use() -> None:
    x = np.ones((30, 5)) * [1.0, 3.0, 2.0, 5.0, 4.0]
    x[0] = 0.0
    x[9:, 3], x[:, 4] = 0.0, 4.0  # too few rows, and constant
    assert candidates(x, 2).tolist() == [1, 2]


@settings(deadline=None)
@given(st.lists(st.integers(-6, 9), min_size=1, max_size=40), st.sampled_from([0.1, 0.2, 0.5]))
def test_threshold_and_e_values_are_those_of_a_plain_transcription(w: Any, q: float) -> None:
    w = np.array(w, float)
    least = next(
        (t for t in sorted({*np.abs(w[w != 0])})
         if (1 + (w <= -t).sum()) / max(1, (w >= t).sum()) <= q), np.inf,
    )  # fmt: skip
    assert threshold(w, q) == least
    e = [len(w) * (one >= least) / (1 + (w <= -least).sum()) for one in w]
    np.testing.assert_allclose(e_values(w, q), e)
    count = max((k for k in range(1, len(e) + 1) if sorted(e)[-k] >= len(e) / (q * k)), default=0)
    assert e_benjamini_hochberg(np.array(e), q).sum() == count


def test_knockoffs_have_the_covariance_of_the_columns_but_for_s() -> None:
    random, rows = np.random.default_rng(1), 100_000
    x = correlated(random, rows, 4)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    gaussian = gaussian_knockoffs(x)
    sigma = x.T @ x / rows
    assert gaussian.s == pytest.approx(min(1, 2 * np.linalg.eigvalsh(sigma)[0]), rel=2e-3)
    both = np.hstack([x, gaussian.draw(x, random)])
    shared = sigma - gaussian.s * np.eye(4)
    expected = np.block([[sigma, shared], [shared, sigma]])
    np.testing.assert_allclose(both.T @ both / rows, expected, atol=5 * np.sqrt(2 / rows))


def test_importance_is_that_of_ridge_probes_and_blind_to_the_order_of_pairs() -> None:
    random = np.random.default_rng(2)
    x, copy = random.normal(size=(2, 200, 6))
    y = random.random((200, 2)) < expit(x[:, :2] * 2)
    found = importance(x, copy, y, random)
    both = np.column_stack([x, copy, np.ones(200)])
    for w, labels in zip(found.T, y.T, strict=True):
        start = np.zeros(13)
        peer = np.abs(next(logistic_path(both, labels, [1 / 6], start)))
        np.testing.assert_allclose(w, peer[:6] - peer[6:12], atol=1e-3)
    np.testing.assert_allclose(importance(copy, x, y, random), -found, atol=1e-3)
    lasso = importance(x, copy, y, random, "l1")
    np.testing.assert_allclose(importance(copy, x, y, random, "l1"), -lasso, atol=1e-3)
    assert (lasso[[0, 1], [0, 1]] > 0.1).all()
    assert (lasso == 0).any()


def test_s_threshold_and_covariance_are_those_of_knockpy() -> None:
    knockpy = pytest.importorskip("knockpy")
    random = np.random.default_rng(4)
    x = correlated(random, 500, 20)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    gaussian = gaussian_knockoffs(x)
    sigma = shrunk(x.T @ x / len(x), shrinkage_intensity(x, "ledoit_wolf"))
    exact = {"method": "equicorrelated", "tol": 1e-12, "num_iter": 40}  # 10 bisections otherwise
    s = np.diag(knockpy.smatrix.compute_smatrix(sigma, **exact))
    np.testing.assert_allclose(gaussian.s, 0.999 * s, rtol=1e-6)
    sampler = knockpy.knockoffs.GaussianSampler(x, Sigma=sigma, S=gaussian.s * np.eye(20))
    both = [np.hstack([x, draw]) for draw in (sampler.sample_knockoffs(), gaussian.draw(x, random))]
    other, own = (one.T @ one / len(x) for one in both)
    np.testing.assert_allclose(own, other, atol=5 * np.sqrt(2 / len(x)))
    for _ in range(50):
        w = random.normal(0.5, 1.0, 60)
        peer = knockpy.knockoff_stats.data_dependent_threshhold(w, fdr=0.2)
        assert threshold(w, 0.2) == pytest.approx(peer)


def test_remarks_and_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    x, y = correlated(random, 200, 20, 0.999), random.random(200) < 0.5
    found = knockoffs(x, y, draws=2, simulations=8)
    assert not len(found.chosen)
    assert found.valid
    near, none = found.notes
    assert near.startswith("s = 0.0")
    assert "with fewer than 10 hits" in none
    monkeypatch.setattr(module, "_false_shares", lambda *_: np.array([0.3, 0.31] * 50))
    bad = knockoffs(x, y, draws=1, simulations=8)
    assert not bad.valid
    assert bad.notes[0].startswith("knockoffs not valid for these latents")
    for labels, wrong, message in (
        (y, {"q": 0.0}, "q is 0"), (y & False, {}, "0 rows of a label"),
        (y, {"draws": 0}, "draws is 0 and simulations 200; expected at least 1"),
        (y, {"simulations": -1}, "draws is 31 and simulations -1"),
        (y, {"statistic": "l3"}, "statistic is 'l3'; expected l2 or l1"),
        (y[1:], {}, "199 labels of 200 rows"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            knockoffs(x, labels, **wrong)
    with pytest.raises(InputError, match="no column varies and is active on 10 rows"):
        knockoffs(np.ones((200, 3)), y)


@pytest.mark.slow
def test_false_discovery_rates_of_marginal_tests() -> None:
    """Labels shift 20 of 100 sparse columns; the others are correlated among themselves."""
    shares = []
    for seed in range(2000):
        random = np.random.default_rng(seed)
        y = np.arange(120) < 60
        shift = 0.8 * np.outer(y, np.arange(100) < 20)
        noise = random.normal(size=(120, 1)) * np.sqrt(0.5)
        x = np.maximum(shift + noise + np.sqrt(0.5) * random.normal(size=(120, 100)) - 0.5, 0.0)
        p = mann_whitney(x, y)
        for chosen in (adjusted_p_values(p, "benjamini_hochberg") <= Q, benjamini_yekutieli(p, Q)):
            shares.append(chosen[20:].sum() / max(1, chosen.sum()))
    for some in np.array(shares).reshape(-1, 2).T:
        assert some.mean() <= Q + 3 * some.std() / np.sqrt(len(some))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("statistic", ["l2", "l1"])
def test_false_discovery_rate_and_power_of_knockoffs(statistic: Any) -> None:
    """The conditional null: a column whose neighbors, not itself, decide the label is false."""
    found = []
    for seed in range(2000):
        x, y, true = labelled(seed, 0.7)
        one = knockoffs(x, y, Q, 7, 1000 + seed, simulations=0, statistic=statistic)
        single = one.w[0] >= threshold(one.w[0], Q)
        by = benjamini_yekutieli(mann_whitney(x, y), Q)
        found.append([])
        for chosen in (one.chosen.tolist(), np.flatnonzero(single).tolist()):
            found[-1].append(len({*chosen} - true) / max(1, len(chosen)))
        found[-1] += [len({*own} & true) / 30 for own in (one.chosen.tolist(), np.flatnonzero(by))]
    table = np.array(found)
    assert table[:, 0].mean() <= Q + 3 * table[:, 0].std() / np.sqrt(len(table))
    # Of single draws it is slightly above (L2: 0.109, error 0.002): the covariance is shrunk.
    assert table[:, 1].mean() <= 1.2 * Q
    gain = table[:, 2] - table[:, 3]
    assert gain.mean() > 3 * gain.std() / np.sqrt(len(gain))
