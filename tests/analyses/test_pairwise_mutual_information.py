import re
import tracemalloc
import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from palinka.analyses.pairwise_mutual_information import (
    correlation_over_pairs,
    outlying_units,
    pairwise_mutual_information,
)
from palinka.analyses.stats.joint_histogram import binned_rows, joint_histogram
from palinka.analyses.stats.similarity import triangle
from palinka.errors import InputError


def plain_histogram(x, y, bins, outlier_z):
    """Kept values and joint counts of two vectors, word for word as the definition has it."""
    if outlier_z > 0:
        with np.errstate(divide="ignore", invalid="ignore"):
            z_x = (x - x.mean()) / x.std(ddof=1)
            z_y = (y - y.mean()) / y.std(ddof=1)
        # A constant vector has no z-scores, whatever rounding makes of 0 / 0.
        dropped_x = (np.abs(z_x) > outlier_z) & (np.ptp(x) > 0)
        dropped_y = (np.abs(z_y) > outlier_z) & (np.ptp(y) > 0)
        kept = ~(dropped_x | dropped_y)
        x, y = x[kept], y[kept]
    return x, y, np.histogram2d(x, y, bins=bins)[0]


def entropy(probabilities):
    return -(probabilities * np.log2(probabilities + 1e-12)).sum()


def plain_pair(x, y, bins, outlier_z):
    """Mutual information, corrected too, covariance and samples of two vectors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        x, y, counts = plain_histogram(x, y, bins, outlier_z)
    n = len(x)
    if n < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0, 0.0, 0.0, n
    joint = counts / counts.sum()
    margins = joint.sum(axis=1), joint.sum(axis=0)
    information = entropy(margins[0]) + entropy(margins[1]) - entropy(joint)
    # Miller and Madow: a histogram's entropy lacks (occupied bins - 1) / 2n nats.
    lacking = [(np.count_nonzero(p) - 1) / (2 * n * np.log(2)) for p in (*margins, joint)]
    corrected = information + lacking[0] + lacking[1] - lacking[2]
    covariance = np.cov(x.astype(np.float64), y.astype(np.float64))[0, 1]
    return information, corrected, covariance, n


def agrees(x, bins=15, outlier_z=5.0):
    """Hold the matrices, and the counts behind them, to the plain transcription."""
    result = pairwise_mutual_information(x, bins, outlier_z)
    if outlier_z is None:
        outlier_z = 5.0 if (x == 0).mean() <= 0.1 else 0.0
    wide = x.astype(np.float32) if x.dtype == np.float16 else x
    rows = binned_rows(wide, outlying_units(wide, outlier_z), bins)
    matrices = np.stack([
        result.mutual_information, result.mutual_information_corrected, result.covariance,
        result.samples,
    ])  # fmt: skip
    assert not np.tril(matrices).any()
    for i, j in combinations(range(len(x)), 2):
        *expected, n = plain_pair(wide[i], wide[j], bins, outlier_z)
        scale = np.array([1e-11, 1e-11, 1e-12 * np.abs(np.outer(*wide[[i, j]])).max()])
        difference = np.abs(matrices[:3, i, j] - expected)
        assert (difference <= scale + 1e-10 * np.abs(expected)).all()
        assert matrices[3, i, j] == n
        if not rows.constant_pairs()[i, j]:
            counts = plain_histogram(wide[i], wide[j], bins, outlier_z)[2]
            np.testing.assert_array_equal(joint_histogram(rows, i, j), counts)
    return result


KINDS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: np.clip(rng.standard_cauchy(size=shape), -6e4, 6e4),
    "ties": lambda rng, shape: rng.integers(0, 16, size=shape),
    "sparse": lambda rng, shape: np.maximum(rng.normal(size=shape) - 1.5, 0),
    "far from zero": lambda rng, shape: 1000 + rng.normal(size=shape),
    "shared spikes": lambda rng, shape: (
        rng.normal(size=shape) + 30 * (rng.random(shape[1]) < 0.05) * rng.random(shape)
    ),
    "some constant": lambda rng, shape: rng.normal(size=shape) * (np.arange(shape[0]) % 2)[:, None],
    "all equal": lambda rng, shape: np.full(shape, rng.normal()),
}


@settings(deadline=None, max_examples=50)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    items=st.integers(3, 5),
    units=st.integers(2, 150),
    bins=st.integers(1, 20),
    outlier_z=st.sampled_from([0.0, 0.7, 2.0, 5.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_the_plain_transcription(kind, dtype, items, units, bins, outlier_z, seed):
    x = KINDS[kind](np.random.default_rng(seed), (items, units)).astype(dtype)
    agrees(x, bins, outlier_z)


def test_outlier_masks_and_edges_differ_between_pairs():
    x = KINDS["heavy tails"](np.random.default_rng(2), (20, 800)).astype(np.float32)
    result = agrees(x)
    assert len(np.unique(triangle(result.samples))) > 5


def test_each_dtype_has_its_own_edges():
    # In float64 three steps of a tenth lie above 0.3, in float32 they are equal.
    tenths = np.random.default_rng(4).integers(0, 11, size=(6, 900)) / 10
    double = agrees(tenths, bins=10).mutual_information
    single = agrees(tenths.astype(np.float32), bins=10).mutual_information
    assert not np.isclose(triangle(single), triangle(double)).any()


def binned_gaussian_information(rho, edges_x, edges_y):
    """Mutual information in bits of a bivariate normal of which only the bins are known."""
    edges_x, edges_y = (np.array([-np.inf, *e[1:-1], np.inf]) for e in (edges_x, edges_y))
    grid = np.linspace(-8, 8, 8001)
    beside = norm.cdf((edges_y[:, None] - rho * grid) / np.sqrt(1 - rho**2))
    weights = norm.pdf(grid) * (grid[1] - grid[0]) * np.diff(beside, axis=0)
    bin_of_grid = np.searchsorted(edges_x, grid, side="right") - 1
    joint = np.stack([weights[:, bin_of_grid == k].sum(axis=1) for k in range(len(edges_x) - 1)])
    return entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0)) - entropy(joint)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
def test_correlated_gaussians_share_what_theory_says_within_the_bias(rho):
    units, bins = 30_000, 15
    rng = np.random.default_rng(5)
    x, own, other = rng.normal(size=(3, units))
    data = np.stack([x, rho * x + np.sqrt(1 - rho**2) * own, other])
    result = pairwise_mutual_information(data, bins=bins)
    theory = -0.5 * np.log2(1 - rho**2)
    edges = [np.linspace(row.min(), row.max(), bins + 1) for row in data]
    binned = binned_gaussian_information(rho, *edges[:2])
    # Bins lose information; chance adds about (bins - 1)² / 2n nats, which the correction removes
    # as far as the occupied cells tell.
    by_chance = (bins - 1) ** 2 / (2 * units * np.log(2))
    plain = result.mutual_information[0, 1]
    corrected = result.mutual_information_corrected[0, 1]
    deviation = rho / np.log(2) / np.sqrt(units)  # of pointwise information, for Gaussians
    assert theory - 0.2 * rho**2 - 1e-4 < binned < theory + 1e-4
    assert -4 * deviation < plain - binned < by_chance + 4 * deviation
    assert abs(corrected - binned) < 0.002 + 4 * deviation
    assert abs(corrected) < plain or rho > 0
    assert result.covariance[0, 1] == pytest.approx(rho, abs=0.02)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_null_is_the_information_of_pairs_with_shuffled_units(kind):
    x = KINDS[kind](np.random.default_rng(12), (5, 90))
    result = pairwise_mutual_information(x, permutations=30, seed=3, outlier_z=2.0)
    rng, expected = np.random.default_rng(3), []
    for _ in range(30):
        first, second, *_ = rng.permutation(5)
        expected.append(plain_pair(x[first], x[second][rng.permutation(90)], 15, 2.0)[0])
    np.testing.assert_allclose(result.null, expected, rtol=1e-9, atol=1e-11)
    scalars = result.scalars()
    assert scalars["null_mean"] == pytest.approx(np.mean(expected))
    assert scalars["null_95"] == pytest.approx(np.percentile(expected, 95))
    none = pairwise_mutual_information(x, permutations=0, outlier_z=2.0)
    assert none.null is None
    assert none.scalars().keys() == scalars.keys() - {"null_mean", "null_95"}
    np.testing.assert_array_equal(none.mutual_information, result.mutual_information)


def test_independent_items_are_at_the_null_and_the_correction_leaves_most_of_the_bias():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 128))
    found = pairwise_mutual_information(x).scalars()
    assert found["null_mean"] == pytest.approx(found["mean_mutual_information"], abs=0.03)
    assert found["mean_mutual_information_corrected"] > 0.6 * found["null_mean"]
    # The units' own means are a dependence of their items, which a shuffle of the units removes.
    dependent = pairwise_mutual_information(x + 2 * rng.normal(size=128)).scalars()
    assert dependent["mean_mutual_information"] > dependent["null_95"]
    assert dependent["null_mean"] == pytest.approx(found["null_mean"], abs=0.1)


def test_the_correction_raises_the_information_of_equal_items():
    x = np.tile(np.random.default_rng(0).normal(size=128), (3, 1))
    result = pairwise_mutual_information(x)
    bins = np.count_nonzero(np.histogram(x[0], 15)[0])
    raised = triangle(result.mutual_information_corrected - result.mutual_information)
    np.testing.assert_allclose(raised, (bins - 1) / (2 * 128 * np.log(2)), rtol=1e-9)
    assert result.notes == ("no correlation: all pairs have the same mutual information",)
    line = result.headline("latents", ())
    shuffled = "(with shuffled latents {null_mean:.3g}, 95 % of pairs below {null_95:.3g})"
    assert shuffled.format(**result.scalars()) in line
    assert line.endswith(", all pairs equal")


def test_correlation_is_pearsons_over_pairs():
    x = np.random.default_rng(6).normal(size=(10, 200))
    x += np.linspace(0, 2, 10)[:, None] * x[0]
    result = pairwise_mutual_information(x, permutations=0)
    assert "shuffled" not in result.headline("units", ())
    arrays = result.arrays()
    assert all(array.dtype == np.float64 for array in arrays.values())
    pairs = {name: triangle(array) for name, array in arrays.items()}
    assert len(pairs["covariance"]) == 45
    scalars = result.scalars()
    expected = np.corrcoef(pairs["mutual_information"], pairs["covariance"])[0, 1]
    assert scalars.pop("correlation") == result.correlation == pytest.approx(expected, rel=1e-12)
    del pairs["samples"]
    assert scalars == {f"mean_{name}": pytest.approx(of.mean()) for name, of in pairs.items()}
    assert result.tables()["percentiles"]["covariance"][-1] == pairs["covariance"].max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors_are_taken_in_their_own_precision(dtype):
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    x = x.to(dtype)
    wide = x.double().numpy() if dtype == torch.float64 else x.float().numpy()
    expected = pairwise_mutual_information(wide).mutual_information
    found = pairwise_mutual_information(x.requires_grad_()).mutual_information
    np.testing.assert_array_equal(found, expected)


def test_any_layout_of_memory_gives_the_same():
    x = np.random.default_rng(8).standard_t(2, size=(300, 8)).astype(np.float32)
    expected = pairwise_mutual_information(np.ascontiguousarray(x.T))
    for view in (x.T, x.T.astype(">f4"), np.repeat(x.T, 2, axis=1)[:, ::2]):
        found = pairwise_mutual_information(view)
        np.testing.assert_array_equal(found.mutual_information, expected.mutual_information)
        np.testing.assert_array_equal(found.covariance, expected.covariance)


ONE_CONSTANT = np.where(np.arange(5) == 3, 0.1, np.random.default_rng(9).normal(size=(50, 5))).T


@pytest.mark.parametrize(
    ("x", "outlier_z", "notes"),
    [
        (ONE_CONSTANT, 5.0, ["1 of 5 items have no variance: their pairs have no information"]),
        (np.arange(3.0)[:, None], 5.0, ["3 of 3 items have no variance: .*"]),
        (
            np.array([[0, 0, 0, 9.0], [0, 1, 2, 3], [1, 2, 1, 2]]),
            0.1,
            [
                "3 of 3 pairs have an item that is constant over the units kept: they have no .*",
                "3 of 3 pairs drop more than 1 % of their units as outliers, up to 4 of 4; .*",
            ],
        ),
    ],
)
def test_items_and_pairs_without_information_are_noted(x, outlier_z, notes):
    result = agrees(x, outlier_z=outlier_z)
    if np.isnan(result.correlation):
        notes = [*notes, "no correlation: all pairs have the same mutual information"]
    assert all(map(re.fullmatch, notes, result.notes))
    assert len(notes) == len(result.notes)
    assert np.isnan(result.correlation) == (len(x) == 3)


def test_rare_activations_are_the_information_of_latents():
    x = np.zeros((4, 2000))
    x[:, :32] = 1
    share = np.array([32, 1968]) / 2000
    result = agrees(x, outlier_z=None)
    bits = -(share * np.log2(share)).sum()
    assert bits == pytest.approx(0.11835, abs=5e-6)
    np.testing.assert_allclose(triangle(result.mutual_information), bits, rtol=1e-9)
    np.testing.assert_allclose(triangle(result.covariance), 2000 / 1999 * share.prod(), rtol=1e-12)
    assert result.notes == ("no correlation: all pairs have the same mutual information",)
    # The rule for dense units drops every activation, and is applied on request alone.
    dropped = agrees(x, outlier_z=5.0)
    assert not dropped.mutual_information.any()
    assert not dropped.covariance.any()
    assert re.search("up to 32 of 2000; outlier_z: 0 keeps all", dropped.notes[1])


@pytest.mark.parametrize(("zeros", "kept"), [(0.0, 999), (0.09, 999), (0.11, 1000), (0.9, 1000)])
def test_dense_units_drop_outliers_by_default(zeros, kept):
    x = np.random.default_rng(11).uniform(1, 2, size=(3, 1000))
    x[np.arange(1000) < 1000 * zeros + np.zeros((3, 1))] = 0.0
    x[:, -1] = 100.0
    result = agrees(x, outlier_z=None)
    assert (triangle(result.samples) == kept).all()
    assert not any("drop more than" in note for note in result.notes)


@settings(deadline=None, max_examples=50)
@given(outliers=st.lists(st.integers(0, 30), min_size=3, max_size=3))
def test_pairs_that_drop_more_than_one_per_cent_are_counted(outliers):
    x = np.random.default_rng(0).uniform(1, 2, size=(3, 1000))
    for row, count in zip(x, outliers, strict=True):
        row[:count] = 1000.0 * np.sign(np.arange(count) % 2 - 0.5)
    result = pairwise_mutual_information(x, outlier_z=5.0)
    dropped = [max(pair) for pair in combinations(outliers, 2)]
    many = sum(count > 10 for count in dropped)
    expected = f"{many} of 3 pairs drop more than 1 % .* up to {max(dropped)} of 1000;"
    assert len(result.notes) == (many > 0)
    assert all(re.match(expected, note) for note in result.notes)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.ones((2, 9)), {}, r"x has the shape \(2, 9\); .* at least 3 rows"),
        (np.ones(9), {}, r"x has the shape \(9,\); expected \(rows, columns\)"),
        (np.array([[1, 2.0], [np.nan, 1], [1, 3]]), {}, "NaN or infinite values in 1 of 3 rows"),
        (np.array([[1, 2.0], [2, 1], [-1e308, 1e308]]), {}, "spans more than float64 .* item 2"),
        (np.eye(3), {"bins": 0}, "bins is 0; expected a whole number from 1 to 1024"),
        (np.eye(3), {"outlier_z": -1.0}, r"outlier_z is -1\.0; expected a z-score, or 0"),
    ],
)
def test_refuses_what_it_cannot_use(x, options, message):
    with pytest.raises(InputError, match=message) as refusal:
        pairwise_mutual_information(x, **options)
    assert "\n" not in str(refusal.value)


def test_memory_grows_with_the_input_and_the_result_alone():
    x = np.random.default_rng(10).normal(size=(120, 2000))
    pairwise_mutual_information(x)
    tracemalloc.start()
    pairwise_mutual_information(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Pairs times units would be 228 MB, units times units 32 MB.
    assert peak < 6 * x.nbytes


# A power of two, so that bins stay the same; squares of float32 would underflow or overflow.
@pytest.mark.parametrize("exponent", [-80, 80])
def test_the_unit_of_measurement_does_not_matter(exponent):
    x = np.random.default_rng(0).normal(size=(5, 300)).astype(np.float32)
    x[:, 7] = 20.0
    found = pairwise_mutual_information(np.ldexp(x, exponent))
    expected = pairwise_mutual_information(x)
    np.testing.assert_array_equal(found.mutual_information, expected.mutual_information)
    np.testing.assert_array_equal(found.samples, expected.samples)
    assert found.correlation == pytest.approx(expected.correlation, rel=1e-9)


def test_correlation_over_pairs_of_tiny_covariances():
    first, second = np.random.default_rng(1).normal(size=(2, 10))
    expected = np.corrcoef(first, second)[0, 1]
    assert correlation_over_pairs(first, 1e-200 * second) == pytest.approx(expected, rel=1e-12)
