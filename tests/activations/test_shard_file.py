import os
from collections.abc import Callable
from pathlib import Path

import pytest

from palinka.data import cache as shard_file
from palinka.data.cache import read_exactly


@pytest.mark.parametrize("full", [shard_file._read_copied, shard_file._read_in_place])
def test_short_reads_are_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: Callable[[int, memoryview, int], int]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    monkeypatch.setattr(shard_file, "read_some", lambda fd, to, at: full(fd, to[:7], at))
    target = bytearray(90)
    descriptor = os.open(path, os.O_RDONLY)
    read_exactly(descriptor, memoryview(target), 10, path)
    os.close(descriptor)
    assert target == bytes(range(10, 100))
