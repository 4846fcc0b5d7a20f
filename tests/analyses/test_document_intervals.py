import numpy as np
import pytest
from scipy import stats

from palinka.analyses.stats.bootstrap import document_intervals, interval_remark

RATIOS = {"mean": ([0, 1, 0], [1, 0, 0]), "share": ([0, 1, -1], [0, 2, 1])}


def test_documents_of_one_length_have_the_interval_of_a_t_test() -> None:
    losses = np.random.default_rng(0).normal(3.0, 1.0, size=12)
    found = document_intervals(np.column_stack([np.full(12, 7.0), 7.0 * losses, losses]), RATIOS)
    expected = stats.ttest_1samp(losses, 0.0).confidence_interval()
    assert found["mean"].value == pytest.approx(losses.mean(), rel=1e-12)
    assert found["mean"].low == pytest.approx(expected.low, rel=1e-12)
    assert found["mean"].high == pytest.approx(expected.high, rel=1e-12)


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
    assert [found.value, found.low, found.high] == pytest.approx([value, low, high], rel=1e-12)


def test_few_documents_give_no_interval_and_a_zero_denominator_no_value() -> None:
    interval = document_intervals([[2.0, 3.0, 0.0]] * 7, RATIOS)["mean"]
    assert interval.value == 1.5
    assert np.isnan([interval.low, interval.high]).all()
    assert np.isnan(document_intervals([[0.0, 3.0, 0.0]] * 9, RATIOS)["mean"].value)


def test_the_remark_says_how_far_to_trust_few_documents() -> None:
    assert "7 document(s), expected at least 8" in interval_remark(7)
    assert "as little as 90 %" in interval_remark(8)
    assert interval_remark(40) == ""
