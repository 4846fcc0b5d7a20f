import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata

from palinka.interventions.matching import match_units, normal_scores


def possible_controls(scores, selected, taken, unit):
    """The 20 nearest units that are neither selected nor taken, as the definition has it."""
    left = [j for j in range(scores.shape[1]) if j not in selected and j not in taken]
    distances = {j: sum((scores[c, j] - scores[c, unit]) ** 2 for c in range(2)) for j in left}
    return sorted(left, key=lambda j: round(distances[j], 9))[:20]


def drawn_by_steps(covariates, selected, draws, seed):
    """Control sets one unit at a time, from the same random numbers."""
    scores = np.array([norm.ppf(rankdata(x) / (len(x) + 1)) for x in covariates])
    random = np.random.default_rng(seed)
    orders = random.permuted(np.tile(np.arange(len(selected)), (draws, 1)), axis=1)
    others = scores.shape[1] - len(selected)
    picks = [random.integers(min(20, others - i), size=(draws, 1)) for i in range(len(selected))]
    sets = []
    for draw in range(draws):
        controls = {}
        for step, place in enumerate(orders[draw]):
            near = possible_controls(scores, selected, controls.values(), selected[place])
            controls[place] = near[picks[step][draw, 0]]
        sets.append([controls[place] for place in range(len(selected))])
    return np.array(sets)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), units=st.integers(12, 60), k=st.integers(1, 30))
def test_controls_are_those_of_the_definition(seed, units, k):
    random = np.random.default_rng(seed)
    covariates = random.normal(size=(2, units)).round(2)  # with ties
    selected = random.permutation(units)[: min(k, units // 2)]
    found = match_units(covariates, selected, 4, seed).controls
    np.testing.assert_array_equal(found, drawn_by_steps(covariates, selected, 4, seed))
    assert not np.isin(found, selected).any()
    assert all(len(set(each)) == len(each) for each in found.tolist())


def test_every_near_unit_is_drawn_equally_often():
    values = np.arange(101.0)
    controls = match_units([values, values], [50], 4000).controls[:, 0]
    drawn, counts = np.unique(controls, return_counts=True)
    assert drawn.tolist() == [*range(40, 50), *range(51, 61)]
    assert ((counts - 200.0) ** 2 / 200.0).sum() < 43.8  # chi-squared of 19, p 0.001


def test_matching_removes_the_difference_in_size():
    random = np.random.default_rng(0)
    covariates = random.normal(size=(2, 2000))
    selected = random.choice(2000, 20, replace=False, p=(w := np.exp(covariates[0])) / w.sum())
    found = match_units(covariates, selected, 200)
    scores = np.stack([normal_scores(x) for x in covariates])
    others = np.delete(scores, selected, axis=1).mean(1)
    expected = (scores[:, selected].mean(1) - others) / scores.std(1)
    np.testing.assert_allclose(found.before, expected)
    difference = scores[:, selected].mean(1) - scores[:, found.controls].mean((1, 2))
    np.testing.assert_allclose(found.after, difference / scores.std(1))
    assert abs(found.before[0]) > 0.5
    assert np.abs(found.after).max() < 0.1


def test_extreme_units_have_no_controls_like_them():
    covariates = np.random.default_rng(0).normal(size=(2, 200))
    largest = np.argsort(-covariates[0])[:20]
    assert match_units(covariates, largest, 50).after[0] > 0.5


def test_norms_that_differ_in_rounding_are_equal():
    norms = 1.0 + 1e-8 * np.arange(40.0)
    np.testing.assert_array_equal(normal_scores(norms), 0.0)
    found = match_units([np.arange(40.0), norms], [20], 100)
    assert found.before[1] == found.after[1] == 0.0
    assert set(found.controls.ravel()) == set(range(10, 31)) - {20}


def test_half_of_the_units_leave_all_others_as_controls():
    half = match_units(np.ones((2, 12)), range(6), 3).controls
    np.testing.assert_array_equal(np.sort(half), np.tile(range(6, 12), (3, 1)))
