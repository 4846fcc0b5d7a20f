import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palinka.analyses import document_bootstrap as module
from palinka.analyses.document_bootstrap import Interval, document_bootstrap
from palinka.errors import InputError

RATIOS = {"mean": ([0, 1, 0], [1, 0, 0]), "share": ([0, 1, -1], [0, 2, 1])}


def plain_bootstrap(sums: np.ndarray, resamples: int, seed: int) -> dict[str, Interval]:
    """Document by document, and draw by draw."""
    random = np.random.default_rng(seed)
    documents = len(sums)

    def ratio(rows: list[np.ndarray], above: list[int], below: list[int]) -> float:
        columns = [sum(row[i] for row in rows) for i in range(3)]
        numerator = sum(weight * column for weight, column in zip(above, columns, strict=True))
        denominator = sum(weight * column for weight, column in zip(below, columns, strict=True))
        return numerator / denominator

    draws = []
    for _ in range(resamples):
        counts = random.multinomial(documents, [1 / documents] * documents)
        draws.append([row for row, count in zip(sums, counts, strict=True) for _ in range(count)])
    found = {}
    for name, weights in RATIOS.items():
        values = sorted(ratio(rows, *weights) for rows in draws)
        low, high = np.quantile(values, [0.025, 0.975])
        found[name] = Interval(ratio(list(sums), *weights), low, high)
    return found


@given(seed=st.integers(0, 2**31), documents=st.integers(2, 6), resamples=st.integers(1, 30))
def test_it_agrees_with_a_plain_transcription(seed: int, documents: int, resamples: int) -> None:
    sums = np.random.default_rng(seed).uniform(0.5, 2.0, (documents, 3))
    with pytest.MonkeyPatch.context() as patch:
        # A few draws at a time; the package knows the module by its function.
        patch.setitem(module.__globals__, "PIECE", 7)
        found = document_bootstrap(sums, RATIOS, resamples=resamples, seed=seed)
    expected = plain_bootstrap(sums, resamples, seed)
    for name, interval in expected.items():
        got = found[name]
        assert [got.value, got.low, got.high] == pytest.approx(
            [interval.value, interval.low, interval.high], rel=1e-12
        )


def test_the_interval_covers_the_mean_of_the_population_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        tokens = random.integers(5, 50, size=40)
        losses = tokens * (3.0 + random.normal(0.0, 0.5, size=40))
        sums = np.column_stack([tokens, losses, np.zeros(40)])
        interval = document_bootstrap(sums, RATIOS, resamples=200, seed=trial)["mean"]
        covered += interval.low <= 3.0 <= interval.high
    assert 0.89 < covered / 300 < 0.98


def test_one_document_gives_no_interval_and_a_zero_denominator_no_value() -> None:
    interval = document_bootstrap([[2.0, 3.0, 0.0]], RATIOS)["mean"]
    assert interval.value == 1.5
    assert np.isnan([interval.low, interval.high]).all()
    assert np.isnan(document_bootstrap([[0.0, 3.0, 0.0]] * 2, RATIOS)["mean"].value)


@pytest.mark.parametrize("options", [{"level": 1.0}, {"resamples": 0}])
def test_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="give a level below 1"):
        document_bootstrap(np.ones((2, 3)), RATIOS, **options)  # type: ignore[arg-type]
