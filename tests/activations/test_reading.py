import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palinka.activations import reading
from palinka.activations.reading import joined, read_exactly


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5)), max_size=10))
def test_joined_runs_hold_the_same_rows(pairs: list[tuple[int, int]]) -> None:
    runs = np.array([(first, first + length) for first, length in pairs], np.int64).reshape(-1, 2)
    joint = joined(runs)
    assert [row for run in joint for row in range(*run)] == [
        row for run in runs for row in range(*run)
    ]
    assert all(one[1] != other[0] for one, other in itertools.pairwise(joint))


@pytest.mark.parametrize("full", [reading._read_copied, reading._read_in_place])
def test_short_reads_are_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: Callable[[int, memoryview, int], int]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    monkeypatch.setattr(reading, "_read_some", lambda fd, to, at: full(fd, to[:7], at))
    target = bytearray(90)
    descriptor = os.open(path, os.O_RDONLY)
    read_exactly(descriptor, memoryview(target), 10, path)
    os.close(descriptor)
    assert target == bytes(range(10, 100))
