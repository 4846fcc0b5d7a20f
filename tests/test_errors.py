import os
import signal
from pathlib import Path

import pytest

from palinka.errors import InputError, atomic_write


def test_a_message_is_one_line_whatever_was_given() -> None:
    assert str(InputError("file a\nb\x1b[31m: missing")) == r"file a\nb\x1b[31m: missing"


def test_a_long_message_shows_both_ends() -> None:
    line = str(InputError("begins" + "x" * 10**6 + "ends"))
    assert line.startswith("begins")
    assert line.endswith("ends")
    assert len(line) < 21_000


def test_a_file_changes_only_once_its_new_version_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old and longer")

    def interrupted() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old and longer"
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old and longer"
    assert path.read_bytes() == b"new"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_writer_that_is_killed_leaves_the_old_version_and_does_not_stop_the_next(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    child = os.fork()
    if child == 0:
        with atomic_write(path) as file:
            file.write(b"torn " * 1000)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert path.read_bytes() == b"old"
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
