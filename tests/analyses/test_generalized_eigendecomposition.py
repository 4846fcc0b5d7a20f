import tracemalloc
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from palinka.analyses import generalized_eigendecomposition
from palinka.errors import InputError

Array = NDArray[np.float64]
close, equal = np.testing.assert_allclose, np.testing.assert_array_equal


def plain_shrinkage(s: Array, gamma: float) -> Array:
    return (1 - gamma) * s + gamma * np.linalg.eigvalsh(s).mean() * np.eye(len(s))


def plain_decomposition(a: Array, b: Array, variance: float, gamma: float) -> tuple[Any, ...]:
    """Steps 1 to 6 of the definition, as they read.

    Gives the shares of variance, and of either direction eigenvalues, top scores and pattern.
    """
    pooled = (np.cov(a, rowvar=False) + np.cov(b, rowvar=False)) / 2
    values, vectors = np.linalg.eigh(pooled)
    values, vectors = values[::-1], vectors[:, ::-1]
    shares = 100 * np.cumsum(values) / values.sum()
    r = next(i for i, share in enumerate(shares) if share > variance)
    v = vectors[:, :r]
    y = np.concatenate([a, b]) @ v
    s = [np.cov(part, rowvar=False).reshape(r, r) for part in (y[: len(a)], y[len(a) :])]
    shrunk = [plain_shrinkage(each, gamma) for each in s]
    directions = []
    for direction in (0, 1):
        eigenvalues, w = scipy.linalg.eigh(s[direction], shrunk[1 - direction])
        pattern = v @ shrunk[direction] @ w[:, -1]
        sign = -1 if pattern[np.abs(pattern).argmax()] < 0 else 1
        directions.append((eigenvalues[::-1], sign * y @ w[:, -1], sign * pattern))
    return shares[: min(len(y), len(values))], *directions


def two_conditions(seed: int, n_a: int = 12, n_b: int = 9, d: int = 7) -> tuple[Array, Array]:
    """Correlated columns of unequal scale, away from zero, with another shape in either."""
    rng = np.random.default_rng(seed)
    scales = np.geomspace(3.0, 0.3, d)
    a = rng.normal(size=(n_a, d)) @ rng.normal(size=(d, d)) * scales + 4.0
    b = rng.normal(size=(n_b, d)) @ rng.normal(size=(d, d)) * scales - 2.0
    return a, b


sizes = st.integers(3, 14)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    seed=st.integers(0, 2**32 - 1),
    n_a=sizes,
    n_b=sizes,
    d=st.integers(2, 40),
    variance=st.sampled_from([60.0, 80.0, 95.0, 99.0, 99.9]),
    gamma=st.sampled_from([0.003, 0.01, 0.1, 0.5]),
)
def test_equals_the_plain_transcription(
    seed: int, n_a: int, n_b: int, d: int, variance: float, gamma: float
) -> None:
    a, b = two_conditions(seed, n_a, n_b, d)
    pooled = np.linalg.eigvalsh((np.cov(a, rowvar=False) + np.cov(b, rowvar=False)) / 2)[::-1]
    shares = 100 * np.cumsum(pooled) / pooled.sum()
    assume(shares[0] <= variance and np.abs(shares - variance).min() > 1e-9)
    plain_shares, *directions = plain_decomposition(a, b, variance, gamma)
    result = generalized_eigendecomposition(a, b, variance, gamma)

    r = len(directions[0][0])
    assert result.components.shape == (d, r)
    assert result.variance_explained.shape == (min(n_a + n_b, d),)
    close(result.variance_explained, plain_shares, rtol=1e-8)
    for name, (eigenvalues, scores, pattern) in zip("ab", directions, strict=True):

        def agrees(field: str, expected: Array, tolerance: float, name: str = name) -> None:
            found = getattr(result, f"{field}_{name}")
            atol = tolerance * np.abs(expected).max()
            close(found, expected, rtol=0, atol=atol)

        agrees("eigenvalues", eigenvalues, 2e-8)
        gap = 1 - eigenvalues[1] / eigenvalues[0] if r > 1 else 1.0
        extremes = np.sort(np.abs(pattern))[-2:]
        # Otherwise the vector, or its sign, is not determined well enough to be compared.
        if gap >= 1e-3 and extremes[1] - extremes[0] >= 1e-4 * extremes[1]:
            agrees("pattern", pattern, 1e-7)
            agrees("scores", scores, 1e-6)


@pytest.mark.parametrize(("n_a", "n_b", "d"), [(12, 9, 7), (12, 9, 50)])
def test_all_filters_solve_what_is_defined(n_a: int, n_b: int, d: int) -> None:
    a, b = two_conditions(3, n_a, n_b, d)
    result = generalized_eigendecomposition(a, b, shrinkage=0.05)
    y = [x @ result.components for x in (a, b)]
    plain = [np.cov(part, rowvar=False) for part in y]
    shrunk = [plain_shrinkage(s, 0.05) for s in plain]
    for s, denominator, filters, eigenvalues, own in (
        (plain[0], shrunk[1], result.filters_a, result.eigenvalues_a, shrunk[0]),
        (plain[1], shrunk[0], result.filters_b, result.eigenvalues_b, shrunk[1]),
    ):
        solved, scale = denominator @ filters * eigenvalues, np.abs(s).max()
        close(s @ filters, solved, atol=1e-8 * scale)
        identity = filters.T @ denominator @ filters
        close(identity, np.eye(len(filters)), atol=1e-9)
        assert (np.diff(eigenvalues) <= 0).all()
        patterns = result.components @ own @ filters
        assert (patterns[np.abs(patterns).argmax(0), range(len(filters))] > 0).all()
    close(result.scores_a, np.concatenate(y) @ result.filters_a[:, 0], rtol=1e-10)
    correlation = scipy.stats.pearsonr(result.pattern_a, result.pattern_b).statistic
    assert result.pattern_correlation == pytest.approx(correlation)


def test_agrees_with_mne() -> None:
    ged = pytest.importorskip("mne.decoding._ged", reason="MNE is not installed")
    a, b = two_conditions(5, 30, 25, 12)
    result = generalized_eigendecomposition(a, b, variance=95.0)
    covariances, basis = (np.cov(x, rowvar=False) for x in (a, b)), result.components.T
    eigenvalues, filters = ged._smart_ged(
        *covariances, restr_mat=basis, R_func=lambda pair: plain_shrinkage(pair[1], 0.01)
    )
    close(result.eigenvalues_a, eigenvalues[::-1], rtol=1e-9)
    ours = result.components @ result.filters_a
    signs = np.sign((ours * filters[:, ::-1]).sum(axis=0))
    close(ours * signs, filters[:, ::-1], atol=1e-8)


@pytest.mark.parametrize(
    ("variance", "kept"), [(61.0, 1), (84.0, 1), (86.0, 2), (98.0, 3), (99.5, 4)]
)
def test_keeps_the_components_before_the_crossing(variance: float, kept: int) -> None:
    # Centered items whose covariance is diagonal with exactly these entries.
    shares = np.array([60.0, 25.0, 10.0, 4.0, 1.0])
    a = np.concatenate([np.eye(5), -np.eye(5)]) * np.sqrt(shares * 9 / 2)
    result = generalized_eigendecomposition(a, np.roll(a, 1, axis=0), variance)
    assert result.components.shape[1] == kept
    close(result.variance_explained, np.cumsum(shares))
    with pytest.raises(InputError, match=r"holds 60 %.*variance=59; give a larger"):
        generalized_eigendecomposition(a, a, 59.0)


def test_a_share_that_is_never_exceeded_keeps_all_that_varies() -> None:
    a, b = two_conditions(0, 6, 5, 30)
    # Six and five items about their own means leave nine dimensions.
    result = generalized_eigendecomposition(a, b, variance=100.0)
    assert result.components.shape == (30, 9)
    a[:, 3:], b[:, 3:] = 0.0, 0.0
    assert generalized_eigendecomposition(a, b, variance=100.0).components.shape == (30, 3)
    equal(result.ranks, [[5, 9], [4, 9]])


@pytest.mark.parametrize("shrinkage", [0.01, "ledoit_wolf", "oas"])
def test_swapping_the_conditions_swaps_the_results(shrinkage: Any) -> None:
    a, b = two_conditions(2)
    there = generalized_eigendecomposition(a, b, shrinkage=shrinkage, permutations=1)
    back = generalized_eigendecomposition(b, a, shrinkage=shrinkage, permutations=1)
    for name in ("eigenvalues", "pattern", "observed", "heldout_ratio"):
        for one, other in ("ab", "ba"):
            close(getattr(there, f"{name}_{one}"), getattr(back, f"{name}_{other}"), rtol=1e-7)
    close(there.scores_a, np.roll(back.scores_b, 12), rtol=1e-7)
    equal(there.ranks, back.ranks[::-1])


def test_never_forms_a_matrix_of_units_by_units() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(10, 20_000)), rng.normal(size=(8, 20_000))
    generalized_eigendecomposition(a, b, permutations=1)
    tracemalloc.start()
    generalized_eigendecomposition(a, b, permutations=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * (a.nbytes + b.nbytes)  # 20,000 squared would be over 1,000 times as much


def test_estimated_shrinkage_is_noted_and_used() -> None:
    covariance = pytest.importorskip("sklearn.covariance", reason="scikit-learn is not installed")
    a, b = two_conditions(4, 20, 16, 10)
    for name, fit in (("ledoit_wolf", covariance.ledoit_wolf), ("oas", covariance.oas)):
        result = generalized_eigendecomposition(a, b, shrinkage=name)
        y_a, y_b = a @ result.components, b @ result.components
        denominator, gamma = fit(y_b)
        # scikit-learn divides by n, the definition by n - 1.
        expected = scipy.linalg.eigvalsh(np.cov(y_a, rowvar=False), denominator * 16 / 15)
        close(result.eigenvalues_a, expected[::-1], rtol=1e-8)
        assert f"b by {gamma:.4g}" in result.notes[0]


def test_permutations_bring_the_null_and_leave_the_rest_alone() -> None:
    a, b = two_conditions(6)
    without = generalized_eigendecomposition(a, b)
    result = generalized_eigendecomposition(a, b, permutations=40, seed=3)
    for name in ("null_a", "p_value_a", "observed_a", "heldout_ratio_a"):
        assert getattr(without, name) is None
    equal(result.eigenvalues_a, without.eigenvalues_a)
    assert result.null_a.shape == result.null_b.shape == (40,)
    for name in "ab":
        null, observed = getattr(result, f"null_{name}"), getattr(result, f"observed_{name}")
        assert getattr(result, f"p_value_{name}") == (1 + (null >= observed).sum()) / 41
    again = generalized_eigendecomposition(a, b, permutations=40, seed=3)
    equal(again.null_b, result.null_b)
    other = generalized_eigendecomposition(a, b, permutations=40, seed=4)
    assert (other.null_b != result.null_b).any()


def test_observed_values_come_from_the_basis_that_does_not_know_the_labels() -> None:
    a, b = two_conditions(7)
    result = generalized_eigendecomposition(a, b, permutations=1)
    centered = np.concatenate([a - a.mean(axis=0), b - b.mean(axis=0)])
    values, vectors = np.linalg.eigh(centered.T @ centered)
    shares = 100 * np.cumsum(values[::-1]) / values.sum()
    y = centered @ vectors[:, ::-1][:, : int((shares <= 99.0).sum())]
    s_a, s_b = (plain_shrinkage(np.cov(part, rowvar=False), 0.01) for part in np.split(y, [12]))
    assert result.observed_a == pytest.approx(scipy.linalg.eigvalsh(s_a, s_b)[-1], rel=1e-9)
    assert result.observed_b == pytest.approx(scipy.linalg.eigvalsh(s_b, s_a)[-1], rel=1e-9)


def simulated_p(draws: int, effect: float, pairs: bool) -> Array:
    """P-values of A over B of correlated pairs; A has more variance in one direction."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        shared = np.sqrt(0.95) * rng.normal(size=(40, 10))
        a, b = shared + np.sqrt(0.05) * rng.normal(size=(2, 40, 10))
        a[:, 0] *= np.sqrt(effect)
        seed = int(rng.integers(2**32))
        result = generalized_eigendecomposition(a, b, permutations=99, pairs=pairs, seed=seed)
        found.append(result.p_value_a)
    return np.array(found)


def test_pairs_find_what_shuffling_all_items_cannot() -> None:
    assert (simulated_p(50, 1.8, pairs=True) <= 0.05).mean() > 0.7
    assert (simulated_p(50, 1.8, pairs=False) <= 0.05).mean() < 0.05


def test_the_heldout_ratio_shows_what_generalizes() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 12)), rng.normal(size=(50, 12))
    for effect in (1.0, 6.0):
        x = a * ([effect] + [1.0] * 11)
        result = generalized_eigendecomposition(x, b, variance=99.9, permutations=1)
        mean, low, high = result.heldout_ratio_a
        assert low < mean < high
        assert (low > 5.0) == (effect > 1.0)
    few = generalized_eigendecomposition(a[:3], b, permutations=1)
    assert few.heldout_ratio_a is None
    assert "no held-out check" in few.notes[0]


def test_project_gives_the_scores_for_any_activations() -> None:
    a, b = two_conditions(8)
    result = generalized_eigendecomposition(a, b)
    both = np.stack([result.scores_a, result.scores_b], axis=1)
    x = np.concatenate([a, b])
    close(result.project(x), both, rtol=1e-8)
    close(result.project(x.reshape(3, 7, 7)), both.reshape(3, 7, 2), rtol=1e-8)
    close(result.project(x[0].tolist()), both[0], rtol=1e-8)
    half = torch.tensor(x, dtype=torch.bfloat16)
    close(result.project(half), result.project(half.float().numpy()), rtol=1e-12)
    with pytest.raises(InputError, match=r"\(4, 6\); expected \(\.\.\., 7\)"):
        result.project(np.ones((4, 6)))


def test_tensors_of_low_precision_give_scalars_arrays_and_tables() -> None:
    a, b = two_conditions(10)
    half = [torch.tensor(x, dtype=torch.bfloat16) for x in (a, b)]
    a, b = (x.double().numpy() for x in half)
    result = generalized_eigendecomposition(*half, permutations=9)
    scalars = result.scalars()
    assert scalars == generalized_eigendecomposition(a, b, permutations=9).scalars()
    assert scalars["eigenvalue_a"] == result.eigenvalues_a[0]
    assert scalars["heldout_ratio_b_high"] == result.heldout_ratio_b[2]
    assert all(type(value) is float for value in scalars.values())
    assert "p_value_a" not in generalized_eigendecomposition(a, b).scalars()
    arrays = result.arrays()
    assert arrays["null_a"].dtype == arrays["components"].dtype == np.float64
    for table in result.tables().values():
        assert len({len(column) for column in table.values()}) == 1


OTHER_DIRECTIONS = {
    "a": 0.01 * np.outer(np.arange(8), np.eye(7)[6]),
    "b": np.eye(12, 7) * (np.eye(7)[6] == 0),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": True}, "a has 12 items and b has 9; pairs need the same number"),
        ({"a": np.ones((2, 7))}, r"a has the shape \(2, 7\); expected .* at least 3 rows"),
        ({"b": np.ones((5, 6))}, "a has 7 units and b has 6"),
        ({"a": np.full((5, 7), np.nan)}, "a holds NaN or infinite values in 5 of 5 rows"),
        ({"a": np.full((5, 7), 0.1), "b": np.full((7, 7), 0.3)}, "items of a are all alike"),
        ({"b": 1e4 + 3e-4 * np.eye(7)}, "items of b are all alike"),  # rounding of float32
        (OTHER_DIRECTIONS, "covariance of a has rank 0 in 5 principal components"),
        ({"variance": 0.0}, "variance=0.0; expected per cent"),
        ({"variance": 1.0}, "give a larger variance"),
        ({"shrinkage": 1.0}, "shrinkage is 1.0; give a number from 0 to below 1"),
        ({"shrinkage": "lw"}, "shrinkage is 'lw'; expected .* 'ledoit_wolf' or 'oas'"),
        ({"d": 40, "shrinkage": 0.0}, "covariance of a has rank .* give a larger shrinkage"),
    ],
)
def test_bad_input_is_one_clear_line(change: dict[str, Any], message: str) -> None:
    change = dict(change)
    a, b = two_conditions(12, d=change.pop("d", 7))
    arguments = {"a": a, "b": b} | change
    with pytest.raises(InputError, match=message) as error:
        generalized_eigendecomposition(**arguments)
    assert "\n" not in str(error.value)
