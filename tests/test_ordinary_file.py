import os
from pathlib import Path

import pytest

from palinka.errors import InputError, open_ordinary, read_ordinary


def test_files_and_links_to_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_ordinary(tmp_path / "file", 5) == b"12345"
    assert read_ordinary(tmp_path / "link", 9) == b"12345"
    with open_ordinary(tmp_path / "file") as file:
        assert file.read(2) == b"12"


def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="cannot be read: it is a pipe or a device"):
            read_ordinary(path, 10)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("folder", "Is a directory"),
        ("nowhere", "No such file"),
        ("loop", "Too many levels of symbolic links"),
        ("a\0b", "embedded null byte"),
        ("n" * 300, "File name too long"),
    ],
)
def test_what_is_no_file_is_named(name: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=f"cannot be read: {problem}"):
        read_ordinary(tmp_path / name, 10)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "hole").open("wb") as stream:
        stream.truncate(2**32)
    with pytest.raises(InputError, match=f"hole has {2**32} bytes; expected at most 10: divide it"):
        read_ordinary(tmp_path / "hole", 10)
