from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.special import expit

from palinka.analyses.stats.bootstrap import share_interval
from palinka.analyses.stats.dictionaries import (
    jackknife,
    latent_stability,
    match_latents,
    shared_subspace,
    unit_rows,
    wilson,
)
from palinka.errors import InputError


def related(latents: int, width: int, shared: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two dictionaries of which some directions agree, more or less."""
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((2, latents, width))
    noise = random.uniform(0.1, 1.5, (shared, 1))
    b[:shared] = a[:shared] + noise * random.standard_normal((shared, width))
    return a, random.permutation(b)


def assert_exact(a: np.ndarray, b: np.ndarray, floor: float) -> None:
    """The value and the partners' share are those of the dense assignment with a floor."""
    found = match_latents(a, b, floor)
    cosines = unit_rows(a).astype(float) @ unit_rows(b).T
    dense = np.maximum(cosines, floor)
    value = np.where(found.partner >= 0, found.cosine, floor).sum(dtype=float)
    value += floor * (min(dense.shape) - len(a))  # rows beyond the number of columns have no pair
    chosen = dense[linear_sum_assignment(dense, maximize=True)]
    np.testing.assert_allclose(value, chosen.sum(), atol=1e-5 * len(a))
    assert abs((found.partner >= 0).sum() - (chosen > floor).sum()) <= 1e-3 * len(a)
    rows = np.flatnonzero(found.partner >= 0)
    assert len(np.unique(found.partner[rows])) == len(rows)
    np.testing.assert_allclose(found.cosine[rows], cosines[rows, found.partner[rows]], atol=1e-6)
    np.testing.assert_allclose(found.best, cosines.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.best_back, cosines.max(axis=0), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 25), st.integers(1, 25), st.integers(1, 6), st.integers(-18, 18), st.data())
def test_the_sparse_matching_is_exact(n: int, m: int, d: int, floor: int, data: st.DataObject):
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    a, b = random.standard_normal((n, d)), random.standard_normal((m, d))
    b[: n // 2] = 2.0 * a[: len(b[: n // 2])]  # some agree, and some are zero
    a[n - 1 :: 3] = 0.0
    assert_exact(a, b, floor / 20 + 0.013)


@pytest.mark.slow
@pytest.mark.parametrize("latents", [512, 4096])
def test_the_sparse_matching_of_many_latents_is_exact(latents: int) -> None:
    a, b = related(latents, 64, latents // 2, 0)
    assert_exact(a, b, 0.4)


def test_all_latents_have_partners_without_a_floor() -> None:
    a, b = related(30, 6, 10, 1)
    found = match_latents(a, b)
    rows, columns = linear_sum_assignment(unit_rows(a) @ unit_rows(b).T, maximize=True)
    np.testing.assert_array_equal(found.partner[rows], columns)


def test_a_floor_that_leaves_too_many_pairs_is_rejected() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 2000, 16))
    with pytest.raises(InputError, match=r"floor 0.02 leaves 1.8\d million pairs; give at least 0"):
        match_latents(a, b, 0.02)
    with pytest.raises(InputError, match="floor is 2; give a cosine, at most 1"):
        match_latents(a, b, 2)


@pytest.mark.parametrize("null", ["signs", "rotation"])
def test_shared_latents_reappear_and_the_others_do_not(null: str) -> None:
    random = np.random.default_rng(0)
    spectrum = np.geomspace(3.0, 0.3, 64)  # anisotropic, as activations are
    common = random.standard_normal((60, 64)) * spectrum
    dictionaries = [
        np.vstack([common + 0.05 * random.standard_normal(common.shape), other * spectrum])
        for other in random.standard_normal((4, 60, 64))
    ]
    orders = [random.permutation(120) for _ in dictionaries]
    dictionaries = [each[order] for each, order in zip(dictionaries, orders, strict=True)]
    alive = [np.ones(120, bool) for _ in dictionaries]
    alive[0][orders[0] == 0] = False
    covariance = np.diag(spectrum**2)
    found = latent_stability(dictionaries, alive=alive, covariance=covariance, null=null)
    first = orders[0]
    np.testing.assert_array_equal(found.reappears[0][(first > 0) & (first < 60)], 1.0)
    others = np.nanmean(found.reappears[0][first >= 60])
    assert others < 0.1 if null == "signs" else others > 0.2  # rotation lets anisotropy pass
    assert np.isnan(found.reappears[0][first == 0]).all()
    twin = int(np.flatnonzero(first == 5)[0])
    for other in (1, 2, 3):
        assert orders[other][found.partner[0][twin, other]] == 5
        assert found.partner[other][found.partner[0][twin, other], 0] == twin
    share = found.estimates["share_0.7"]
    pairs = [59 / 119.5] * 3 + [0.5] * 3
    np.testing.assert_allclose(share.value, np.mean(pairs))
    assert share.low < share.value < share.high
    assert found.estimates["share_null"].value == pytest.approx(0.01, abs=0.005)
    assert found.floor <= found.threshold
    corrected = found.estimates["share_0.7_corrected"]
    assert corrected.value == pytest.approx(share.value, abs=0.02)


def test_two_dictionaries_have_an_interval_over_latents() -> None:
    a, b = related(400, 32, 200, 3)
    share = latent_stability([a, b], covariance=np.eye(32)).estimates["share_0.7"]
    np.testing.assert_allclose([share.low, share.high], wilson(400 * share.value, 400))


def test_the_jackknife_leaves_out_seeds() -> None:
    pairs = [(0, 1), (0, 2), (1, 2)]
    # Without each seed one pair is left: .6, .4, .2; SE² = 2/3 · (.04 + 0 + .04), t(2) = 4.3027.
    np.testing.assert_allclose(
        jackknife([0.2, 0.4, 0.6], pairs), 4.3027 * np.sqrt(0.16 / 3), rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("level", [-3.0, 0.0])
def test_the_jackknifed_interval_of_a_share_covers(seeds: int, level: float) -> None:
    """The share of a pair of seeds depends on both seeds, on the pair, and on the latents."""
    random, pairs = np.random.default_rng(seeds), list(combinations(range(seeds), 2))

    def shares(own: np.ndarray) -> np.ndarray:
        of_pair = 0.1 * random.standard_normal((len(own), len(pairs)))
        return expit(level + np.array([own[:, i] + own[:, j] for i, j in pairs]).T + of_pair)

    truth, covered = shares(0.3 * random.standard_normal((100_000, seeds))).mean(), []
    for expected in shares(0.3 * random.standard_normal((2000, seeds))):
        values = random.binomial(512, expected) / 512
        own = share_interval(values.mean(), jackknife(values, pairs))
        covered.append(own.low <= truth <= own.high)
    assert 0.93 <= np.mean(covered) <= 0.98


@pytest.mark.slow
def test_the_interval_over_latents_of_two_dictionaries_covers() -> None:
    """Each latent is shared with a probability of .3."""
    found = []
    for seed in range(1000):
        random = np.random.default_rng(seed)
        a, b = random.standard_normal((2, 150, 32))
        shared = random.random(150) < 0.3
        b[shared] = a[shared] + 0.05 * random.standard_normal((shared.sum(), 32))
        both = latent_stability([a, b], covariance=np.eye(32), draws=2, floor=0.6)
        found.append(both.estimates["share_0.7"])
    truth = np.mean([one.value for one in found])
    assert truth == pytest.approx(0.3, abs=0.01)
    assert 0.93 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.98


def test_wilson_intervals_of_a_few_seeds() -> None:
    low, high = wilson([4, 0], 4)
    np.testing.assert_allclose([*low, *high], [0.5101, 0.0, 1.0, 0.4899], atol=1e-4)


def test_a_common_subspace_is_found() -> None:
    random = np.random.default_rng(0)
    plane = np.linalg.qr(random.standard_normal((20, 4)))[0].T
    a, b = random.standard_normal((2, 300, 4)) @ plane
    overlap, cosines, spans = shared_subspace([a, b])
    np.testing.assert_allclose(cosines, np.ones((1, 4)), atol=1e-6)
    assert (round(overlap, 6), spans[0].shape) == (1.0, (4, 20))
    overlap, _, spans = shared_subspace(list(random.standard_normal((4, 200, 40))))
    assert overlap == pytest.approx(len(spans[0]) / 40, abs=0.05)
