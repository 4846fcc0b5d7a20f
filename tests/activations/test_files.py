import errno
import os
import signal
from pathlib import Path

import pytest

from palinka.data.files import replacement, told_apart
from palinka.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_committed_replacement_is_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old and longer")
    with replacement(path) as new:
        assert new is not None
        new.file.write(b"new")
        assert path.read_bytes() == b"old and longer"
        new.commit()
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_without_commit_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacement(path) as new:
        assert new is not None
        new.file.write(b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_only_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacement(path) as new:
        assert new is not None
        with replacement(path, wait=False) as other:
            assert other is None
        new.file.write(b"first")
        new.commit()
        # The name is free again, the first writer's lock lies on the finished file.
        with replacement(path, wait=False) as other:
            assert other is not None
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["file"]


def die_while_writing(path: Path) -> None:
    """Be killed, in a process of its own, between the first bytes and the last."""
    child = os.fork()
    if child == 0:
        with replacement(path) as new:
            if new is not None:
                new.file.write(b"torn " * 1000)
                new.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_dead_process_keeps_neither_lock_nor_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    die_while_writing(path)
    assert names(tmp_path) == ["file.tmp"]
    with replacement(path, wait=False) as new:
        assert new is not None
        new.file.write(b"whole")
        new.commit()
    assert path.read_bytes() == b"whole"
    assert names(tmp_path) == ["file"]


def test_a_temporary_name_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "file.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match="symbolic link"), replacement(tmp_path / "file"):
        pass
    assert (tmp_path / "victim").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "x: no space left; free some or choose another cache folder"),
        (errno.EROFS, "x: the file system is read-only"),
        (errno.EACCES, "x: permission denied"),
        (errno.EIO, "x: the disk reports an input/output error"),
        (errno.ENOTDIR, "x: Not a directory"),
    ],
)
def test_errors_say_what_to_do(number: int, message: str) -> None:
    with pytest.raises(InputError, match=message), told_apart(Path("x")):
        raise OSError(number, os.strerror(number))
