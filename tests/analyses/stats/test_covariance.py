import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.analyses.stats.covariance import (
    PrincipalComponents,
    principal_components,
    shrinkage_intensity,
    shrunk,
)
from palinka.errors import InputError


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**31), st.integers(3, 30), st.integers(1, 30), st.sampled_from([1.0, 50.0]))
def test_estimators_equal_scikit_learn(seed: int, n: int, r: int, skew: float) -> None:
    covariance = pytest.importorskip("sklearn.covariance", reason="scikit-learn is not installed")
    x = np.random.default_rng(seed).normal(size=(n, r)) * np.geomspace(skew, 1.0, r) + 3.0
    for name, fit in (("ledoit_wolf", covariance.ledoit_wolf), ("oas", covariance.oas)):
        expected, gamma = fit(x)
        found = shrinkage_intensity(x - x.mean(axis=0), name)
        assert found == pytest.approx(gamma, rel=1e-9, abs=1e-12)
        empirical = np.cov(x, rowvar=False, ddof=0).reshape(r, r)
        np.testing.assert_allclose(
            shrunk(empirical, found), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max()
        )


@pytest.mark.parametrize(("shrinkage", "found"), [("ledoit_wolf", 0.0), ("oas", 1.0), (0.25, 0.25)])
def test_identical_items_need_no_estimate_and_numbers_pass_through(
    shrinkage: float, found: float
) -> None:
    assert shrinkage_intensity(np.zeros((5, 3)), shrinkage) == found


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(2, 30), st.sampled_from([1.0, 1e4]))
def test_both_routes_agree(seed: int, items: int, d: int, skew: float) -> None:
    rng = np.random.default_rng(seed)
    rows = np.geomspace(skew, 1.0, items)[:, None] * rng.normal(size=(items, d))
    narrow = principal_components(rows)
    # Rows of zeros add nothing to the scatter, and take the route through the d x d matrix.
    wide = principal_components(np.concatenate([rows, np.zeros((d, d))]))
    k = min(items, d)
    assert narrow.eigenvalues.shape == (k,)
    largest = wide.eigenvalues[0]
    np.testing.assert_allclose(
        narrow.eigenvalues, wide.eigenvalues[:k], rtol=1e-8, atol=1e-12 * largest
    )
    np.testing.assert_allclose(wide.eigenvalues[k:], 0.0, atol=1e-12 * largest)
    axes = narrow.axes(k)
    assert axes.shape == (d, k)
    np.testing.assert_allclose(axes.T @ axes, np.eye(k), atol=1e-9)
    scatter = (axes * narrow.eigenvalues) @ axes.T
    np.testing.assert_allclose(scatter, rows.T @ rows, atol=1e-9 * largest)


def test_a_share_that_is_met_exactly_is_not_exceeded() -> None:
    components = principal_components(np.diag(np.sqrt([2.0, 1.0, 1.0, 0.0])))
    np.testing.assert_allclose(components.cumulative, [50, 75, 100, 100])
    assert [components.before(share) for share in (51, 60, 76, 80, 100)] == [1, 1, 2, 2, 3]
    exact = PrincipalComponents(np.eye(4), np.array([2.0, 1.0, 1.0, 0.0]), np.eye(4))
    assert [exact.before(share) for share in (50, 75)] == [1, 2]
    with pytest.raises(InputError, match="alone holds 50 %"):
        components.before(49.9)


def test_no_variance_is_refused() -> None:
    with pytest.raises(InputError, match="no column varies"):
        principal_components(np.zeros((3, 5)))
