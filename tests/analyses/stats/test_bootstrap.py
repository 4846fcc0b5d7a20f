from dataclasses import astuple
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from palinka.analyses.representational_similarity import representational_similarity
from palinka.analyses.stats.bootstrap import document_intervals, interval_remark, resampled_scores
from palinka.analyses.stats.similarity import cosine_similarity, dense_ranks


def cosines(items, width, seed):
    return cosine_similarity(np.random.default_rng(seed).normal(size=(items, width)))


def plain_resample(x, y, compare, counts):
    """Write every drawn word out as often as it was drawn; copies of a word make no pair."""
    words = np.repeat(np.arange(len(x)), counts)
    pairs = [(i, j) for i, j in combinations(words, 2) if i != j]
    a, b = (np.array([matrix[i, j] for i, j in pairs]) for matrix in (x, y))
    if len(set(pairs)) < 2:
        return np.nan
    if compare != "kendall":
        return (stats.pearsonr if compare == "pearson" else stats.spearmanr)(a, b)[0]
    signs = [
        np.sign(a[p] - a[q]) * np.sign(b[p] - b[q])
        for p, q in combinations(range(len(pairs)), 2)
        if pairs[p] != pairs[q]
    ]
    return np.mean(signs)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("compare", ["pearson", "spearman", "kendall"])
@pytest.mark.parametrize("strata", [[[0, 1, 2, 3, 4, 5]], [[0, 2], [1, 3, 4, 5]]])
def test_equals_expanded_samples(compare, strata):
    x, y = cosines(6, 5, seed=0), cosines(6, 4, seed=1)
    strata = [np.array(items) for items in strata]
    scores = resampled_scores(x, y, compare, strata, 25, np.random.default_rng(2))
    random = np.random.default_rng(2)
    counts = np.zeros((25, 6), dtype=int)
    for items in strata:
        even = np.full(len(items), 1 / len(items))
        counts[:, items] = random.multinomial(len(items), even, size=25)
    expected = [plain_resample(x, y, compare, count) for count in counts]
    np.testing.assert_allclose(scores, expected, atol=1e-9)


def test_few_words_and_cka_have_notes_on_their_interval():
    x, y = np.random.default_rng(3).normal(size=(2, 3, 4))
    few = representational_similarity(x, y, permutations=100)
    assert "of 100 resamples of the words have no score" in few.notes[-1]
    assert np.isfinite(few.score_interval).all()
    x, y = np.random.default_rng(4).normal(size=(2, 20, 60))
    cka = representational_similarity(x, y, compare="cka", permutations=100)
    assert cka.score_interval is None
    assert "on average, not 0" in cka.notes[-1]


@pytest.mark.parametrize("compare", ["pearson", "spearman", "kendall"])
def test_the_interval_covers_the_score_of_all_words(compare):
    random = np.random.default_rng(5)
    to_x, to_y = random.normal(size=(2, 4, 12))

    def words(items):
        hidden = random.normal(size=(items, 4))
        noise = random.normal(size=(2, items, 12))
        return hidden @ to_x + noise[0], hidden @ to_y + noise[1]

    truth = representational_similarity(*words(300), compare=compare).score
    covered = []
    for seed in range(120):
        drawn = representational_similarity(
            *words(16), compare=compare, permutations=120, seed=seed
        )
        low, high = drawn.score_interval
        covered.append(low <= truth <= high)
    assert np.mean(covered) > 0.87


def test_groups_are_resampled_within():
    # Between groups nothing varies: any interval but a point would come from changed group sizes.
    x = np.eye(2)[[0] * 6 + [1] * 2]
    result = representational_similarity(x, x, groups=list("aaaaaabb"), permutations=50)
    np.testing.assert_allclose(result.score_interval, [1.0, 1.0])
    assert dense_ranks(np.array([3.0, 1.0, 3.0])).tolist() == [1, 0, 1]


RATIOS = {"mean": ([0, 1, 0], [1, 0, 0]), "share": ([0, 1, -1], [0, 2, 1])}


def test_documents_of_one_length_have_the_interval_of_a_t_test() -> None:
    losses = np.random.default_rng(0).normal(3.0, 1.0, size=12)
    found = document_intervals(np.column_stack([np.full(12, 7.0), 7.0 * losses, losses]), RATIOS)
    expected = stats.ttest_1samp(losses, 0.0).confidence_interval()
    assert astuple(found["mean"]) == pytest.approx((losses.mean(), *expected), rel=1e-12)


def test_documents_of_any_length_agree_with_a_plain_transcription() -> None:
    sums = np.random.default_rng(1).uniform(0.5, 2.0, (9, 3))
    above, below = sums[:, 1] - sums[:, 2], 2.0 * sums[:, 1] + sums[:, 2]
    value, share = above.sum() / below.sum(), below / below.sum()
    variance = sum(
        ((above[i] - value * below[i]) / below.sum()) ** 2 / (1 - share[i]) for i in range(9)
    )
    freedom = 8 / 9 * sum(share**2) ** 2 / sum(share**4)
    low, high = stats.t(freedom, value, np.sqrt(variance)).interval(0.95)
    found = document_intervals(sums, RATIOS)["share"]
    assert astuple(found) == pytest.approx((value, low, high), rel=1e-12)


def test_few_documents_give_no_interval_and_a_zero_denominator_no_value() -> None:
    assert "7 documents, expected at least 8" in interval_remark(7)
    assert "less than 90 %" in interval_remark(8)
    assert interval_remark(40) == ""
    interval = document_intervals([[2.0, 3.0, 0.0]] * 7, RATIOS)["mean"]
    assert interval.value == 1.5
    assert np.isnan([interval.low, interval.high]).all()
    assert np.isnan(document_intervals([[0.0, 3.0, 0.0]] * 9, RATIOS)["mean"].value)
