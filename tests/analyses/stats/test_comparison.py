import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from palinka.analyses import Sample, compare, minimal_detectable_difference, seeds_needed
from palinka.analyses.stats.comparison import (
    Estimate,
    Variance,
    difference,
    estimate,
    format_number,
    seed_spread,
)
from palinka.errors import InputError

SEEDS = (2, 3, 4, 5, 6, 8, 10, 16, 20)
PAIRED = (11.6, 3.26, 2.13, 1.68, 1.43, 1.16, 1.00, 0.75, 0.66)
TWO_SAMPLES = (5.65, 3.07, 2.38, 2.02, 1.80, 1.51, 1.32, 1.02, 0.91)


def sample(name, values, influence=None, seeds=None, freedom=np.inf):
    values = np.asarray(values, dtype=float)
    influence = None if influence is None else np.asarray(influence, dtype=float)
    items = 0 if influence is None else influence.shape[1]
    seeds = tuple(range(len(values))) if seeds is None else seeds
    return Sample(name, values, influence, freedom, seeds, "documents", items)


@pytest.mark.parametrize("paired", [True, False])
def test_detectable_differences_equal_the_published_table(paired):
    for n, expected in zip(SEEDS, PAIRED if paired else TWO_SAMPLES, strict=True):
        found = minimal_detectable_difference(1.0, n, paired)
        assert found == pytest.approx(expected, abs=0.051 if expected > 10 else 0.0051)
        freedom = n - 1 if paired else 2 * n - 2
        shift = found * np.sqrt(n / (1 if paired else 2))
        bound = stats.t.isf(0.025, freedom)
        power = stats.nct.sf(bound, freedom, shift) + stats.nct.cdf(-bound, freedom, shift)
        assert np.nan_to_num(power, nan=0.8) == pytest.approx(0.8, abs=1e-6)
    one_each = Estimate(0.0, {"seeds": Variance(2.0, np.inf)}, {})
    assert one_each.half_width() == pytest.approx(2.77, abs=0.005)
    assert one_each.detectable() == pytest.approx(3.96, abs=0.005)


@given(st.floats(0.3, 30.0), st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_seeds_needed_are_the_fewest_that_find_the_difference(size, paired):
    n = seeds_needed(1.0, size, paired)
    assert minimal_detectable_difference(1.0, n, paired) <= size
    assert n == 2 or minimal_detectable_difference(1.0, n - 1, paired) > size


def test_intervals_of_seeds_equal_t_tests():
    a, b = np.random.default_rng(0).normal(size=(2, 5))
    one = estimate(sample("a", a))
    assert one.interval() == pytest.approx(stats.ttest_1samp(a, 0).confidence_interval())
    assert one.p_value() == pytest.approx(stats.ttest_1samp(a, 0).pvalue)
    paired, welch = sample("b", b), sample("b", b, seeds=(5, 6, 7, 8, 9))
    found = difference(sample("a", a), paired)
    assert found.p_value() == pytest.approx(stats.ttest_rel(a, b).pvalue)
    found, expected = difference(sample("a", a), welch), stats.ttest_ind(a, b, equal_var=False)
    assert found.p_value() == pytest.approx(expected.pvalue)
    assert found.interval() == pytest.approx(expected.confidence_interval())
    fixed = difference(sample("a", a), sample("b", [0.3], seeds=(None,)))
    assert fixed.p_value() == pytest.approx(stats.ttest_1samp(a, 0.3).pvalue)


def test_only_common_seeds_are_paired():
    a, b = sample("a", [1.0, 2.0, 4.0]), sample("b", [5.0, 1.0, 0.5], seeds=(9, 2, 1))
    assert difference(a, b).value == pytest.approx(np.mean([2.0 - 0.5, 4.0 - 1.0]))
    assert difference(a, b).n == {"seeds": 2}


@given(st.integers(2, 6), st.integers(2, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_recipe_rule_adds_squares_and_p_leaves_out_zero(seeds, items, seed):
    random = np.random.default_rng(seed)
    values, influence = random.normal(1.0, 1.0, seeds), random.normal(size=(2, seeds, items))
    a, b = (sample(x, values * k, influence[k], freedom=items - 1.0) for k, x in enumerate("ab"))
    found, own = difference(a, b), values * -1
    v = np.square((influence[0] - influence[1]).mean(axis=0)).sum()
    t = [stats.t.isf(0.025, f) for f in (seeds - 1, items - 1)]
    expected = t[0] ** 2 * own.var(ddof=1) / seeds + t[1] ** 2 * v
    assert found.half_width() ** 2 == pytest.approx(expected)
    p = found.p_value()
    assert min(map(abs, found.interval(p))) == pytest.approx(0.0, abs=1e-8 * abs(found.value))
    back = difference(b, a)
    assert (back.value, back.p_value()) == pytest.approx((-found.value, p))


def test_one_checkpoint_of_each_is_paired_by_item():
    random = np.random.default_rng(1)
    common, own = random.normal(size=30), random.normal(size=30)
    a = sample("a", [0.5], [common + 0.1 * own], freedom=29)
    b = sample("b", [0.1], [common], freedom=29)
    assert difference(a, b).errors == {
        "documents": (pytest.approx(0.01 * np.square(own).sum()), 29)
    }


A = sample("A", [0.012, 0.030, 0.021, 0.040, 0.033])
ZERO = sample("B", np.zeros(5))


@pytest.mark.parametrize(
    ("pair", "options", "verdict", "sentence"),
    [
        ((A, ZERO), {}, "higher", r"A is higher than B by 0.027 \(0.014 to 0.041; 5 seeds\)"),
        ((ZERO, A), {}, "lower", r"B is lower than A by 0.027 \(0.014 to 0.041; 5 seeds\)"),
        ((A, ZERO), {"margin": 0.05}, "equal", "A and B are equal within 0.05."),
        (
            (replace(A, values=A.values - 0.025), ZERO), {}, "undecided",
            r"A and B cannot be told apart at 5 seeds: 0.002 \(-0.011 to 0.016\); "
            "a difference of 0.018 would have been found 4 times in 5.",
        ),
        (
            (sample("A", [0.5, 0.7]), sample("B", [0.6, 0.4])), {"largest": 1.0}, "undecided",
            r"A and B cannot be told apart at 2 seeds: 0.1 \(-2.4 to 2.6\); "
            "no difference would have been found 4 times in 5.",
        ),
        (
            (A, ZERO), {"weak": {"A": "the random model"}}, "higher",
            "A is no better than the random model. A is higher .*",
        ),
        (
            (sample("A", [3.0], [[0.1] * 10], freedom=9), sample("B", [1.0], [[-0.1] * 10])), {},
            "higher",
            "One seed each: this compares two checkpoints, not two recipes. A is higher than B "
            r"by 2.0 \(0.6 to 3.4; 10 documents\)",
        ),
        (
            (A, sample("B", [0.0])), {}, "higher",
            "One seed of B: this compares a recipe with a checkpoint. A is higher .*",
        ),
        (
            (sample("A", [13.0]), sample("B", [10.0])), {}, "no interval",
            "One seed each: .* A and B differ by 3, without an interval.",
        ),
        (  # such as numbers of dead latents
            (sample("A", [1.0, 1.0]), sample("B", [0.0, 0.0])), {"margin": 2.0}, "no interval",
            "A and B differ by 1, without an interval.",
        ),
    ],
)  # fmt: skip
def test_verdicts_in_words(pair, options, verdict, sentence):
    found = compare([pair], **options)[0]
    assert found.verdict == verdict
    assert re.fullmatch(
        sentence, f"{found.remark} {found.sentence}".strip().replace("\N{MINUS SIGN}", "-")
    )


def test_verdicts_are_those_after_holm():
    shifts = [0.0, 0.001, -0.013, -0.0135]
    pairs = [(replace(A, values=A.values + shift), ZERO) for shift in shifts]
    pairs.append((sample("A", [1.0]), sample("B", [2.0])))  # not a test
    found = compare(pairs)
    p = [one.p for one in found[:4]]
    order = np.argsort(p)
    expected, largest = np.empty(4), 0.0
    for step, place in enumerate(order):
        largest = max(largest, (4 - step) * p[place])
        expected[place] = min(1.0, largest)
    assert [one.p_holm for one in found[:4]] == pytest.approx(expected)
    assert [one.verdict for one in found] == [*["higher"] * 2, *["undecided"] * 2, "no interval"]
    assert found[0].simultaneous_low == pytest.approx(
        stats.t.interval(1 - 0.05 / 4, 4, A.values.mean(), stats.sem(A.values))[0]
    )
    assert "after correction for 4 comparisons" in found[3].sentence
    assert compare(pairs[3:4])[0].verdict == "higher"


def test_the_spread_of_seeds_is_pooled_and_has_a_chi_square_interval():
    factors = ("2 .45 32", "3 .52 6.3", "5 .60 2.9", "10 .69 1.8", "20 .76 1.5")
    for n, low, high in (map(float, line.split()) for line in factors):
        sd, *interval = seed_spread([range(int(n))])
        assert np.divide(interval, sd) == pytest.approx([low, high], rel=0.03)
    pooled, *_ = seed_spread([[1.0, 3.0], [10.0, 10.0, 13.0]])
    assert pooled == pytest.approx(np.sqrt((2.0 + 6.0) / 3))
    for call, message in (
        (lambda: seed_spread([[1.0], [2.0]]), "needs two of one recipe"),
        (lambda: minimal_detectable_difference(1.0, 1), "n is 1; .* at least 2"),
        (lambda: seeds_needed(1.0, -1.0), "difference is -1; give one above 0"),
        (
            lambda: seeds_needed(1.0, 1.0, power=1.0),
            "alpha is 0.05 and power 1; expected 0 < a",
        ),
        (lambda: minimal_detectable_difference(1.0, 5, alpha=0.9), "alpha is 0.9 and power 0.8"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_numbers_have_two_digits_of_their_error():
    assert format_number(-0.012345, 0.0031) == "\N{MINUS SIGN}0.0123"
    assert format_number(1234.56, 250.0) == "1235"
    assert format_number(-0.0012, 0.31) == "0.00"
    assert format_number(0.25, np.nan) == "0.25"
    assert format_number(15.999984, 1e-6) == "16"
    assert format_number(np.nan, np.nan) == "\N{EN DASH}"


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
def test_the_recipe_rule_covers(seeds, ratio):
    """Each value is the recipe's mean, a deviation of its seed and the mean of 84 items."""
    random, covered = np.random.default_rng(seeds), []
    for _ in range(2000):
        item = random.normal(0.0, 1.0, (1, 84)) + random.normal(0.0, 0.5, (seeds, 84))
        values = random.normal(0.0, np.sqrt(ratio / 84), seeds) + item.mean(axis=1)
        influence = (item - item.mean(axis=1, keepdims=True)) / np.sqrt(84 * 83)
        low, high = estimate(sample("a", values, influence, freedom=83)).interval()
        covered.append(low <= 0.0 <= high)
    error = 3 * np.sqrt(0.05 * 0.95 / 2000)
    assert 0.95 - error <= np.mean(covered) <= 0.985 + error


@pytest.mark.slow
def test_ten_comparisons_without_a_difference_have_a_verdict_at_most_once_in_twenty():
    random, wrong = np.random.default_rng(7), []
    for _ in range(2000):
        item = random.normal(size=(1, 40))
        samples = []
        for name in "ABCDE":
            own = item + random.normal(0.0, 0.3, (5, 40))
            values = random.normal(0.0, 0.1, 5) + own.mean(axis=1)
            influence = (own - own.mean(axis=1, keepdims=True)) / np.sqrt(40 * 39)
            samples.append(sample(name, values, influence, freedom=39))
        pairs = [(a, b) for i, a in enumerate(samples) for b in samples[:i]]
        wrong.append(any(one.verdict != "undecided" for one in compare(pairs)))
    assert np.mean(wrong) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("items", [0.0, 1.0])
def test_a_detectable_difference_is_found_four_times_in_five(seeds, items):
    """With an error of items as large as that of seeds, it is found at least as often."""
    random, found = np.random.default_rng(3), []
    truth = Estimate(0.0, {"seeds": Variance(1 / seeds, seeds - 1.0)}, {})
    if items:
        truth.errors["documents"] = Variance(items / seeds, 83.0)
    size = truth.detectable()
    for _ in range(4000):
        values = random.normal(size, 1.0, seeds)
        item = random.normal(0.0, np.sqrt(84 * items / seeds), 84)
        influence = (item - item.mean()) / np.sqrt(84 * 83)
        one = sample("a", values + item.mean(), np.tile(influence, (seeds, 1)), freedom=83)
        found.append(estimate(one).p_value() <= 0.05)
    assert np.mean(found) == pytest.approx(0.8, abs=0.03) if not items else np.mean(found) >= 0.77
