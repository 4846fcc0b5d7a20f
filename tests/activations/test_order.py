import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from palinka.data.format import permutation
from palinka.data.loader import RowOrder


def plain_stream(rows: int, run_rows: int, *seeds: int) -> list[int]:
    if not seeds:
        return list(range(rows))
    runs = [list(range(rows))[i : i + run_rows] for i in range(0, rows, run_rows)]
    return [row for run in permutation(len(runs), *seeds) for row in runs[run]]


@given(
    st.integers(1, 80),
    st.integers(1, 90),
    st.lists(st.integers(0, 9), max_size=2),
    st.tuples(st.integers(0, 80), st.integers(0, 80)),
)
def test_slices_equal_plain_transcription(
    rows: int, run_rows: int, seeds: list[int], bounds: tuple[int, int]
) -> None:
    start, stop = sorted(min(bound, rows) for bound in bounds)
    runs = RowOrder(rows, run_rows, *seeds).slice(start, stop)
    assert (runs[:, 0] < runs[:, 1]).all()
    read = [row for first, last in runs for row in range(first, last)]
    assert read == plain_stream(rows, run_rows, *seeds)[start:stop]


def test_each_epoch_has_its_own_order() -> None:
    orders = {tuple(RowOrder(20, 2, 0, epoch).slice(0, 20).ravel()) for epoch in range(5)}
    assert len(orders) == 5


def test_no_seeds_mean_one_run() -> None:
    np.testing.assert_array_equal(RowOrder(20, 2).slice(3, 17), [[3, 17]])
