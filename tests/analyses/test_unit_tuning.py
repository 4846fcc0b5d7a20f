import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.special import gamma

from palinka.analyses.stats.comparison import adjusted_p_values
from palinka.analyses.stats.permutation import max_t
from palinka.analyses.unit_tuning import unit_tuning
from palinka.errors import InputError

numbers = st.floats(-50, 50, width=32)


def factor(freedom):
    return gamma(freedom / 2) / (np.sqrt(freedom / 2) * gamma((freedom - 1) / 2))


@pytest.mark.parametrize("test", ["paired", "welch"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_equals_scipy(test, data):
    shapes = ((7, 3), (7 if test == "paired" else 5, 3))
    a, b = (data.draw(arrays(np.float32, shape, elements=numbers, unique=True)) for shape in shapes)
    result = unit_tuning(a, b, test)
    a, b = a.astype(np.float64), b.astype(np.float64)
    spread = np.ptp(b - a, axis=0) if test == "paired" else np.ptp(a, axis=0) + np.ptp(b, axis=0)
    a, b = a[:, spread > 1e-9], b[:, spread > 1e-9]
    if test == "paired":
        expected, freedom, scale = stats.ttest_rel(b, a), 6, (b - a).std(axis=0, ddof=1)
    else:
        expected, freedom = stats.ttest_ind(b, a, equal_var=False), 10
        scale = np.sqrt((6 * a.var(axis=0, ddof=1) + 4 * b.var(axis=0, ddof=1)) / 10)
    g = factor(freedom) * (b.mean(axis=0) - a.mean(axis=0)) / scale
    for name, values in {"t": expected.statistic, "p": expected.pvalue, "effect_size": g}.items():
        found = getattr(result, name)[spread > 1e-9]
        np.testing.assert_allclose(found, values, rtol=1e-10, atol=1e-12)


def conditions(seed=0, items=12, units=40, tuned=5, effect=3.0, second_items=None):
    random = np.random.default_rng(seed)
    a = random.normal(size=(items, units))
    b = random.normal(size=(second_items or items, units))
    b[:, :tuned] += effect
    return a, b


p_values = st.floats(0, 1) | st.sampled_from([0.0, 0.005, 0.01, 0.02, 0.05, 1.0])


def plain_adjusted(p, correction):
    """The smallest error rate at which the step-down or step-up procedure rejects each."""
    m, order = len(p), sorted(range(len(p)), key=lambda test: p[test])
    adjusted = [0.0] * m
    for place, test in enumerate(order):
        if correction == "bonferroni":
            bounds = [m * p[test]]
        elif correction == "holm":
            bounds = [max((m - k) * p[order[k]] for k in range(place + 1))]
        else:
            bounds = [m * p[order[k]] / (k + 1) for k in range(place, m)]
        adjusted[test] = min(1.0, *bounds)
    return adjusted


@pytest.mark.parametrize("correction", ["bonferroni", "holm", "benjamini_hochberg"])
@given(p=st.lists(p_values, min_size=1, max_size=12))
@settings(deadline=None)
def test_adjusted_p_equal_the_plain_procedures(correction, p):
    adjusted = adjusted_p_values(np.array(p), correction)
    np.testing.assert_allclose(adjusted, plain_adjusted(p, correction), rtol=1e-12)


def test_significance_follows_the_correction():
    a, b = conditions(effect=1.5, tuned=15)
    p = stats.ttest_rel(b, a).pvalue
    for alpha in (0.05, 0.2):
        assert (unit_tuning(a, b, alpha=alpha).significant == (p < alpha / 40)).all()
    counts = []
    for correction in ("bonferroni", "holm", "benjamini_hochberg"):
        result = unit_tuning(a, b, correction=correction)
        np.testing.assert_allclose(result.p_adjusted, plain_adjusted(result.p, correction))
        assert (result.significant == (result.p_adjusted <= 0.05)).all()
        assert (result.significant == (np.abs(result.t) > result.threshold)).all()
        counts.append(result.significant.sum())
    assert 0 < counts[0] <= counts[1] < counts[2]


@pytest.mark.parametrize("test", ["paired", "welch"])
def test_max_t_takes_sign_flips(test):
    a, b = conditions(effect=1.8, tuned=15)
    result = unit_tuning(a, b, test, "max_t", permutations=200, seed=7)
    samples = [b - a] if test == "paired" else [-a, b]
    np.testing.assert_array_equal(result.p_adjusted, max_t(result.t, samples, 200, seed=7)[0])
    assert (result.significant == (result.p_adjusted <= 0.05)).all()
    assert (result.significant == (np.abs(result.t) > result.threshold)).all()
    assert 0 < result.significant.sum() < 40
    # The p-values stay those of each unit by itself.
    np.testing.assert_allclose(result.p, unit_tuning(a, b, test).p)


@pytest.mark.parametrize("correction", ["holm", "max_t"])
@pytest.mark.parametrize("test", ["paired", "welch"])
@pytest.mark.parametrize("scale", [1e-170, 1e160, 5e-308, 1e300])
def test_the_unit_of_measurement_does_not_matter(scale, test, correction):
    a, b = conditions(units=5, tuned=2)
    expected = unit_tuning(a, b, test, correction)
    scales = np.array([1.0, scale, 1.0, scale, scale])
    found = unit_tuning(a * scales, b * scales, test, correction)
    for name, values in expected.arrays().items():
        np.testing.assert_allclose(found.arrays()[name], values, rtol=1e-8, err_msg=name)


def test_the_sign_says_which_condition_a_unit_prefers():
    a, b = conditions()
    a[:, 7] += 5.0
    result = unit_tuning(a, b)
    assert result.t[7] == result.t.min()
    assert result.most_negative == 7
    assert result.most_positive == result.t.argmax() < 5
    assert result.effect_size[7] < 0 < result.effect_size[0]
    mirrored = unit_tuning(b, a)
    np.testing.assert_allclose(mirrored.t, -result.t)
    np.testing.assert_allclose(mirrored.effect_size, -result.effect_size)


@pytest.mark.parametrize("correction", ["bonferroni", "max_t"])
@pytest.mark.parametrize("test", ["paired", "welch"])
def test_units_without_variance_are_no_error(test, correction):
    a, b = conditions(units=6)
    a[:, 2], b[:, 2] = 0.1, 0.3  # the differences are not exactly equal in floating point
    a[:, 4], b[:, 4] = 0.0, 0.0
    b[:, 2] += np.linspace(0, 3e-17, 12)
    result = unit_tuning(a, b, test, correction)
    for unit in (2, 4):
        assert result.t[unit] == result.effect_size[unit] == 0
        assert result.p[unit] == 1
        assert not result.significant[unit]
    assert result.notes[0].startswith("2 of 6 have no variance")
    assert np.isfinite(result.t).all()
    others = unit_tuning(a[:, [0, 1, 3, 5]], b[:, [0, 1, 3, 5]], test, correction)
    np.testing.assert_allclose(result.t[[0, 1, 3, 5]], others.t)


def test_paired_items_that_differ_by_a_constant_have_no_variance():
    a, _ = conditions(units=3)
    assert unit_tuning(a, a + 0.1).t.tolist() == [0, 0, 0]
    assert (unit_tuning(a, a + 0.1, test="welch").t != 0).all()
    assert not unit_tuning(a, a).significant.any()


def test_takes_torch_of_half_precision_and_gives_scalars_and_a_table():
    a, b = (torch.tensor(x, dtype=torch.bfloat16) for x in conditions(units=4, tuned=1))
    result = unit_tuning(a, b)
    np.testing.assert_allclose(result.t, unit_tuning(a.double(), b.double()).t)
    assert result.scalars() == {
        "units": 4, "units_significant": 1, "most_positive": 0, "most_positive_t": result.t[0],
        "most_negative": result.t.argmin(), "most_negative_t": result.t.min(),
        "most_positive_p_value": result.p_adjusted[0],
        "most_negative_p_value": result.p_adjusted[result.t.argmin()],
    }  # fmt: skip
    line = result.headline("units", ("verbs", "nouns"))
    assert line.startswith("1 of 4 units differ at alpha 0.05 (paired t, Bonferroni over 4 units)")
    verbs, nouns = line.partition("; ")[2].split(", for ")
    assert verbs.startswith(f"for verbs most unit {result.most_negative} (t ")
    assert verbs.endswith("(not significant))")
    assert nouns == f"nouns most unit 0 (t {result.t[0]:.3g}, p {result.p_adjusted[0]:.3g})"
    table = result.tables()["strongest_units"]
    assert table["unit"][0] == 0
    assert list(np.abs(table["t"])) == sorted(np.abs(result.t), reverse=True)


# Each unit is a draw of its own.
@pytest.mark.parametrize("draws", [1000, pytest.param(4000, marks=pytest.mark.slow)])
def test_p_is_uniform_under_the_null(draws, assert_uniform):
    random = np.random.default_rng(8)
    paired = random.normal(size=(10, draws))
    assert_uniform(unit_tuning(paired, paired + random.normal(size=(10, draws))).p)
    # Unequal sizes and variances, which a pooled t-test gets wrong.
    a, b = random.normal(size=(12, draws)), 3.0 * random.normal(size=(30, draws))
    assert_uniform(unit_tuning(a, b, test="welch").p)


@pytest.mark.parametrize("test", ["paired", "welch"])
def test_an_effect_is_found(test):
    a, b = conditions(seed=9, items=20, units=500, tuned=500, effect=1.2)
    assert (unit_tuning(a, b, test).p < 0.05).mean() > 0.85


@pytest.mark.parametrize("correction", ["bonferroni", "holm", "benjamini_hochberg", "max_t"])
def test_no_more_than_alpha_of_null_experiments_have_a_significant_unit(correction):
    random = np.random.default_rng(10)
    false_alarms = sum(
        unit_tuning(
            *random.normal(size=(2, 8, 12)), correction=correction, permutations=99, seed=draw
        ).significant.any()
        for draw in range(500)
    )
    assert stats.binomtest(int(false_alarms), 500, 0.05).pvalue > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"a": np.ones((2, 3)), "b": np.ones((2, 3))},
            r"a has the shape \(2, 3\); .* at least 3 rows",
        ),
        ({"b": np.ones((5, 3))}, "a has 4 items and b has 5.*welch"),
        ({"b": np.ones((2, 3)), "test": "welch"}, r"b has the shape \(2, 3\)"),
        ({"b": np.ones((4, 2))}, "3 units and b has 2"),
        ({"b": np.full((4, 3), np.nan)}, "b holds NaN"),
        ({"test": "pooled"}, "test is 'pooled'; expected 'paired' or 'welch'"),
        ({"correction": "none"}, "correction is 'none'; expected 'bonferroni' or"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"correction": "max_t", "permutations": 0}, "permutations is 0"),
        ({"test": "welch", "correction": "max_t"}, "4 items; under welch, max_t.*at least 8.*holm"),
    ],
)
def test_bad_input(change, message):
    arguments = {"a": np.ones((4, 3)), "b": np.ones((4, 3)), **change}
    with pytest.raises(InputError, match=message):
        unit_tuning(**arguments)


def test_a_wrong_name_is_rejected_wherever_it_is_given():
    a, b = np.random.default_rng(0).normal(size=(2, 4, 3))
    with pytest.raises(InputError, match="test is 'pared'; expected 'paired' or 'welch'"):
        unit_tuning(a, b, "pared")
    with pytest.raises(TypeError, match="correcton"):
        unit_tuning(a, b, correcton="holm")
    np.testing.assert_array_equal(unit_tuning(a, b, "welch").t, unit_tuning(a, b, test="welch").t)
