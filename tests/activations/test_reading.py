import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from palinka.activations.reading import joined


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5)), max_size=10))
def test_joined_runs_hold_the_same_rows(pairs: list[tuple[int, int]]) -> None:
    runs = np.array([(first, first + length) for first, length in pairs], np.int64).reshape(-1, 2)
    joint = joined(runs)
    assert [row for run in joint for row in range(*run)] == [
        row for run in runs for row in range(*run)
    ]
    assert all(one[1] != other[0] for one, other in itertools.pairwise(joint))
