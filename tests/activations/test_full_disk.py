"""Real file systems that are full, or become read-only: in a name space of its own."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from palinka.data.cache import Cache
from palinka.data.writer import CacheWriter
from palinka.errors import InputError

if TYPE_CHECKING:
    from conftest import SmallCorpus

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_DONE, _FAILED, _NO_MOUNT = 0, 1, 77


def mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True, capture_output=True)


def on_a_small_disk(folder: Path, work: Callable[[], None]) -> None:
    """Do something in a process that sees an empty file system of 64 kB at `folder`."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux to mount a small file system")
    child = os.fork()
    if child == 0:
        status = _FAILED
        try:
            flags = _NEW_MOUNTS | (0 if os.geteuid() == 0 else _NEW_USER)
            try:
                if ctypes.CDLL(None).unshare(flags):
                    os._exit(_NO_MOUNT)
                mount("--make-rprivate", "/")
                mount("-t", "tmpfs", "-o", "size=64k", "none", str(folder))
            except (OSError, subprocess.CalledProcessError):
                os._exit(_NO_MOUNT)
            work()
            status = _DONE
        except BaseException as error:
            print(repr(error), flush=True)
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == _NO_MOUNT:
        pytest.skip("this user may not mount a file system")
    assert status == _DONE


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def refused(small: "SmallCorpus", root: Path) -> str:
    with pytest.raises(InputError) as error:
        small.write(root)
    message = str(error.value)
    assert message.startswith(str(small.key.folder(root)))
    assert "\n" not in message
    assert not list(root.glob("*/*.tmp"))
    return message


def test_a_full_disk_is_named_and_the_harvest_goes_on_once_there_is_room(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    # Three shards of 8 kB and more.
    small = corpus(width=128, dtype="float32")
    expected = content(small.write(tmp_path / "whole").folder)
    disk = tmp_path / "disk"
    disk.mkdir()

    def work() -> None:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(40 * 1024))
        assert "no space left; free some or choose another" in refused(small, disk)
        writer = CacheWriter(disk, small.key)
        done = 3 - len(writer.missing(3))
        assert done == 1
        assert not writer.finished
        ballast.unlink()
        assert content(small.write(disk).folder) == expected

    on_a_small_disk(disk, work)


def test_a_read_only_disk_is_named_and_its_finished_caches_are_read(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small, other = corpus(), corpus(seed=1)
    disk = tmp_path / "disk"
    disk.mkdir()

    def work() -> None:
        whole = small.write(disk)
        with CacheWriter(disk, other.key).claim(0) as shard:
            assert shard is not None
            shard.write(*other.shard(0))
        mount("-o", "remount,ro", str(disk))
        assert "the file system is read-only; choose another" in refused(other, disk)
        Cache.open(whole.folder, small.key, verify_shards=True).read_rows(0, 40)
        mount("-o", "remount,rw", str(disk))
        other.write(disk).verify()

    on_a_small_disk(disk, work)
