"""Sparse probes against scikit-learn, a slow AUC, and simulations."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from palinka.analyses.stats.probes import (
    PENALTIES,
    clustered_auc,
    deal_groups,
    selection_scores,
    sparse_probe,
)
from palinka.errors import InputError
from palinka.evaluation.values import Measurement, Value, value_of
from palinka.interventions.logistic import logistic_path

KINDS = ("dense", "sparse", "separable", "wide", "copies")


def problem(kind: str, seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    n, k = (60, 40) if kind == "wide" else (200, 30)
    x = random.standard_normal((n, k)) * random.lognormal(size=k)
    if kind == "sparse":
        x = np.maximum(x - 1.0, 0.0)
    if kind == "copies":
        x[:, 15:] = x[:, :15]
    y = random.random(n) < 1 / (1 + np.exp(-(x[:, 0] + 0.5)))
    return x, x[:, 1] > 0 if kind == "separable" else y


@pytest.mark.parametrize("kind", KINDS)
def test_weights_at_every_penalty_are_those_of_scikit_learn(kind: str) -> None:
    x, y = problem(kind)
    rows = np.column_stack([x, np.ones(len(x))])
    found = [*logistic_path(rows, y, PENALTIES, np.zeros(rows.shape[1]))]
    for c, w in zip(PENALTIES, found, strict=True):
        peer = LogisticRegression(C=c, tol=1e-14, max_iter=10000, solver="newton-cholesky")
        by_lbfgs = LogisticRegression(C=c, tol=1e-10, max_iter=10000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a tolerance below the rounding of some sums
            fits = [model.fit(x, y) for model in (peer, by_lbfgs)]
        expected, rough = (np.append(fit.coef_[0], fit.intercept_) for fit in fits)
        np.testing.assert_allclose(w, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
        gradient = np.append(w[:-1], 0.0) + c * ((expit(rows @ w) - y) @ rows)
        assert np.abs(gradient).max() <= 1e-8 * (1.0 + c * len(x))
        signs = np.where(y, 1, -1)
        least, theirs = (
            c * np.logaddexp(0, -signs * (rows @ v)).sum() + 0.5 * v[:-1] @ v[:-1]
            for v in (w, rough)
        )
        assert least <= theirs * (1 + 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_in_single_precision_is_as_near_as_its_tolerance_says(kind: str) -> None:
    for seed in range(5):
        x, y = problem(kind, seed)
        rows = np.column_stack([x, np.ones(len(x))])
        start = np.zeros(rows.shape[1])
        exact = logistic_path(rows, y, PENALTIES, start)
        rough = logistic_path(rows, y, PENALTIES, start, None, 1e-4)
        for near, w in zip(rough, exact, strict=True):
            assert np.abs(near - w).max() <= 10 * 1e-4 * max(1.0, np.abs(w).max())


def test_a_hessian_that_rounding_leaves_without_a_factor_is_computed_again() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((400, 3)) @ random.standard_normal((3, 60))
    rows, y = np.column_stack([x, np.ones(400)]), x[:, 0] + random.standard_normal(400) > 0
    start = np.zeros(61)
    near, exact = (
        next(logistic_path(rows, y, [1e5], start, None, tolerance)) for tolerance in (1e-4, 1e-9)
    )
    assert np.abs(near - exact).max() <= 1e-3 * max(1.0, np.abs(exact).max())


scores_of = st.integers(4, 24).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-3, 3), min_size=n, max_size=n),
        st.permutations([True, False] * (n // 2) + [True] * (n % 2)),
        st.lists(st.integers(0, 6), min_size=n, max_size=n),
    )
)


@given(scores_of)
@settings(max_examples=40, deadline=None)
def test_auc_and_its_contributions_by_their_definition(data: tuple[Any, Any, Any]) -> None:
    s, y, group = map(np.array, data)
    found = clustered_auc(s, y, group)
    wins = (s[y][:, None] > s[~y]) + 0.5 * (s[y][:, None] == s[~y])
    auc = wins.mean()
    psi = np.empty(len(s))
    psi[y] = (wins.mean(axis=1) - auc) / y.mean()
    psi[~y] = (wins.mean(axis=0) - auc) / (~y).mean()
    expected = [psi[group == one].sum() / len(s) for one in np.unique(group)]
    np.testing.assert_allclose(found.influence, expected, atol=1e-12)
    assert found.value == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    assert auc == pytest.approx(found.value, abs=1e-12)


def test_of_single_rows_the_error_is_delongs() -> None:
    random = np.random.default_rng(0)
    s, y = random.standard_normal(80), random.random(80) < 0.4
    wins = (s[y][:, None] > s[~y]) + 0.0
    parts = [wins.mean(axis=axis) for axis in (1, 0)]
    delong = sum(np.square(part - wins.mean()).sum() / len(part) ** 2 for part in parts)
    found = clustered_auc(s, y, np.arange(80))
    assert np.square(found.influence).sum() == pytest.approx(delong, rel=1e-12)


def transcribed(column: Any, y: Any, rule: str) -> float:
    a, b = column[y], column[~y]
    if rule == "auc":
        return float(abs(roc_auc_score(y, column) - 0.5))
    difference = abs(a.mean() - b.mean())
    if rule == "mean_difference":
        return float(difference / np.abs(column[column != 0]).mean())
    if rule == "t":
        return float(difference / np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))
    pooled = (a.var() * len(a) + b.var() * len(b)) / (len(y) - 2)
    return float(difference / np.sqrt(pooled * (1 / len(a) + 1 / len(b))))


@pytest.mark.parametrize("rule", ["mean_difference", "t", "f", "auc"])
def test_selection_scores_by_their_definition(rule: Any) -> None:
    x, y = problem("sparse")
    x[:, 3] = 2.0
    x = x.astype(np.float32)
    found = selection_scores(x, y, rule)
    assert found[3] == -np.inf
    some = np.flatnonzero(found > -np.inf)[:4]
    expected = [transcribed(x[:, at].astype(float), y, rule) for at in some]
    np.testing.assert_allclose(found[some], expected, rtol=1e-9)


@given(st.integers(0, 2**32), st.integers(2, 4), st.integers(10, 40))
@settings(max_examples=30, deadline=None)
def test_parts_have_whole_groups_and_alike_labels(seed: int, parts: int, count: int) -> None:
    random = np.random.default_rng(seed)
    groups = random.integers(0, count, 8 * count)
    labels = random.random(count)[groups] < 0.5
    part = deal_groups(labels, groups, parts, random)
    by_group = [np.unique(part[groups == one]) for one in np.unique(groups)]
    assert all(len(found) == 1 for found in by_group)
    dealt = np.bincount(np.concatenate(by_group), minlength=parts)
    assert dealt.max() - dealt.min() <= 1
    of_kind = {one: labels[groups == one].all() for one in np.unique(groups)}
    for kind in (True, False):  # groups of one label are divided evenly
        counts = np.zeros(parts)
        for one, is_kind in of_kind.items():
            counts[part[groups == one][0]] += is_kind == kind
        assert counts.max() - counts.min() <= 2


def test_the_error_is_that_of_five_halves_and_halves_are_shared() -> None:
    x, y = problem("sparse", 3)
    groups = np.arange(200) // 2
    one = sparse_probe(x, y, groups, ks=(1, 3))
    other = sparse_probe(x[:, ::-1], y, groups, ks=(1, 3))
    assert one.influence.shape == (2, 500)
    np.testing.assert_allclose(one.auc[0], other.auc[0], rtol=1e-12)
    np.testing.assert_array_equal(one.chosen, 29 - other.chosen)
    variances = []
    random = np.random.default_rng(0)
    for test in [deal_groups(y, groups, 2, random) == 1 for _ in range(5)]:
        column = one.chosen[len(variances), 0]
        train = ~test
        sign = np.sign(x[train & y, column].mean() - x[train & ~y, column].mean())
        found = clustered_auc(sign * x[test, column], y[test], groups[test])
        variances.append(np.square(found.influence).sum())
    assert one.error[0] ** 2 == pytest.approx(0.6 * np.mean(variances), rel=1e-9)
    by_half = np.square(one.influence[0]).reshape(5, 100).sum(axis=1)
    np.testing.assert_allclose(by_half, 0.6 / 5 * np.array(variances))


def test_principal_components_and_more_columns_than_rows() -> None:
    x, y = problem("wide")
    x[:, 0] *= 50.0
    first = sparse_probe(x, y, ks=(1, 40), rule="first", pca=True)
    assert first.auc[0] == pytest.approx(sparse_probe(x, y, ks=(1,), rule="first").auc[0], abs=0.02)
    assert (first.chosen[:, 0] == 0).all()


def test_penalty_and_scores_are_those_of_scikit_learn_on_standardized_columns() -> None:
    x, y = problem("sparse", 4)
    found, rows = sparse_probe(x, y, ks=(4,), halves=1), np.arange(200)
    random = np.random.default_rng(0)
    test = deal_groups(y, rows, 2, random) == 1
    seed = int(random.integers(2**32, size=1)[0])
    folds = deal_groups(y[~test], rows[~test], 4, np.random.default_rng(seed))
    x = x[:, found.chosen[0]]
    x = (x - x[~test].mean(axis=0)) / x[~test].std(axis=0)

    def margins(c: float, train: Any, valid: Any, right: Any) -> Any:
        model = LogisticRegression(C=c, tol=1e-12, max_iter=10000, solver="newton-cholesky")
        return model.fit(train, right).decision_function(valid)

    losses = []
    for c in PENALTIES:
        loss = 0.0
        for fold in range(4):
            inside, truth = folds != fold, y[~test][folds == fold]
            margin = margins(c, x[~test][inside], x[~test][~inside], y[~test][inside])
            loss += np.logaddexp(0, np.where(truth, -margin, margin)).sum()
        losses.append(loss)
    best = PENALTIES[np.argmin(losses)]
    assert found.penalty[0, 0] == best
    margin = margins(best, x[~test], x[test], y[~test])
    assert found.auc[0] == pytest.approx(roc_auc_score(y[test], margin), abs=1e-12)
    assert found.accuracy[0] == ((margin > 0) == y[test]).mean()
    loss = np.logaddexp(0, np.where(y[test], -margin, margin)).mean()
    assert found.log_loss[0] == pytest.approx(loss, rel=1e-9)


def test_faults_are_named() -> None:
    x, y = problem("dense")
    with pytest.raises(InputError, match="did you mean 'auc'"):
        sparse_probe(x, y, rule="aucs")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1"):
        sparse_probe(x, y, ks=(0,))
    with pytest.raises(InputError, match="7 positives"):
        sparse_probe(x, np.arange(200) < 7)
    with pytest.raises(InputError, match="needs both kinds"):
        clustered_auc([1, 2], [True, True], [0, 1])


def simulated(random: Any, copies: int, signal: float, columns: int) -> tuple[Any, Any, Any]:
    """Rows of sparse latents of which five are related to the label, and their groups."""
    n = 400
    y = random.random(n // copies) < 0.5
    x = np.maximum(random.standard_normal((len(y), columns)) - 1.0, 0.0)
    x[:, :5] += signal * y[:, None] * random.random((len(y), 5))
    return np.repeat(x, copies, axis=0), np.repeat(y, copies), np.repeat(np.arange(len(y)), copies)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("copies", "signal", "most"),
    [(1, 0.5, 0.98), (4, 0.5, 0.98), (1, 0.0, 0.995)],  # of noise, halves choose other columns
)
def test_intervals_cover_the_auc_of_new_data(copies: int, signal: float, most: float) -> None:
    """Of the AUC, and of the difference of two dictionaries with the same halves."""
    random, draws, n = np.random.default_rng(7), 400, 400 // copies
    found: dict[str, list[Value]] = {"auc": [], "auc_minus_b": []}
    for _ in range(draws):
        x, y, groups = simulated(random, copies, signal, 200)
        half = simulated(random, copies, 0.0, 200)[0]
        half[:, :3] = x[:, :3]
        a, b = (sparse_probe(one, y, groups, ks=(5,)) for one in (x, half))
        for name, value, influence in (
            ("auc", a.auc[0], a.influence[0]),
            ("auc_minus_b", a.auc[0] - b.auc[0], a.influence[0] - b.influence[0]),
        ):
            one = Measurement(name, "a", value, influence, "texts", n, n / 2 - 1, "task")
            found[name].append(value_of([one], "a"))
    for values in found.values():
        # The mean over simulations is the value that probes of as many rows have.
        mean, bound = np.mean([v.value for v in values]), 3 * np.sqrt(0.95 * 0.05 / draws)
        covered = np.mean([v.low <= mean <= v.high for v in values])
        assert 0.93 - bound <= covered <= most + bound


@pytest.mark.slow
def test_selection_outside_the_halves_is_caught() -> None:
    """Noise has an AUC of one half, unless columns are selected on the test rows."""
    random, inside, leaked = np.random.default_rng(5), [], []
    for _ in range(20):
        x, y, _ = simulated(random, 1, 0.0, 2000)
        inside.append(sparse_probe(x, y, ks=(16,)).auc[0])
        order = np.argsort(-selection_scores(x, y, "mean_difference"))[:16]
        leaked.append(sparse_probe(x[:, order], y, ks=(16,), rule="first").auc[0])
    error = np.std(inside, ddof=1) / np.sqrt(20)
    assert abs(np.mean(inside) - 0.5) <= 3 * error
    assert np.mean(leaked) > 0.7
