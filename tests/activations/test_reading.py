import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from palinka.data.cache import cut_at, joined


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5)), max_size=10))
def test_joined_runs_hold_the_same_rows(pairs: list[tuple[int, int]]) -> None:
    runs = np.array([(first, first + length) for first, length in pairs], np.int64).reshape(-1, 2)
    joint = joined(runs)
    assert [row for run in joint for row in range(*run)] == [
        row for run in runs for row in range(*run)
    ]
    assert all(one[1] != other[0] for one, other in itertools.pairwise(joint))


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=10),
)
def test_pieces_hold_the_same_rows_each_in_one_shard(
    lengths: list[int], pairs: list[tuple[int, int]]
) -> None:
    borders = np.cumsum([0, *lengths])
    runs = np.minimum(np.sort(np.array(pairs, np.int64).reshape(-1, 2), axis=1), borders[-1])
    shards, starts, counts = cut_at(borders, runs)
    assert [
        row for start, n in zip(starts, counts, strict=True) for row in range(start, start + n)
    ] == [row for run in runs for row in range(*run)]
    assert (counts > 0).all()
    assert (borders[shards] <= starts).all()
    assert (starts + counts <= borders[shards + 1]).all()
