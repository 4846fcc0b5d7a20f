"""Removing a cache: the manifest first, nothing else with it, never under a living process."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from palinka.data import inventory as removal
from palinka.data.cache import Cache
from palinka.data.inventory import remove_cache
from palinka.data.writer import CacheWriter
from palinka.errors import InputError

if TYPE_CHECKING:
    from conftest import SmallCorpus


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def begun(root: Path, small: "SmallCorpus") -> CacheWriter:
    """A writer that has written one shard."""
    writer = CacheWriter(root, small.key)
    with writer.claim(0) as shard:
        assert shard is not None
        shard.write(*small.shard(0))
    return writer


def test_a_cache_goes_with_its_folder(cache: Cache) -> None:
    size = sum(path.stat().st_size for path in cache.folder.iterdir())
    removed = remove_cache(cache.folder)
    assert (removed.bytes, removed.left) == (size, ())
    assert not cache.folder.exists()
    assert cache.folder.parent.is_dir()


def test_what_is_no_part_of_it_stays(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("stays")
    (cache.folder / "notes.txt").write_text("of a user")
    (cache.folder / "shard-00007.json").symlink_to(tmp_path / "precious")
    (cache.folder / "shard-00008.json").mkdir()
    (cache.folder / "shard-00009.safetensors.tmp").symlink_to(tmp_path / "precious")
    left = (
        "notes.txt", "shard-00007.json", "shard-00008.json", "shard-00009.safetensors.tmp",
    )  # fmt: skip
    assert remove_cache(cache.folder).left == left
    assert sorted(path.name for path in cache.folder.iterdir()) == list(left)
    assert (tmp_path / "precious").read_text() == "stays"


def test_no_link_in_the_place_of_a_cache_is_followed(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(cache.folder)
    with pytest.raises(InputError, match="link: "):
        remove_cache(tmp_path / "link")
    cache.verify()


def test_one_that_is_being_harvested_is_refused(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    writer = begun(tmp_path, corpus())
    before = content(writer.folder)
    with pytest.raises(InputError, match="a living process is harvesting it; stop that first"):
        remove_cache(writer.folder)
    assert content(writer.folder) == before
    writer.close()
    assert remove_cache(writer.folder).left == ()
    assert not writer.folder.exists()


def killed_after(count: int) -> Callable[..., None]:
    """Removes so many files, and kills its process instead of removing one more."""
    calls = iter(range(count))
    unlink = os.unlink

    def counted(*args: object, **kwargs: object) -> None:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        unlink(*args, **kwargs)  # type: ignore[arg-type]

    return counted


def test_killed_at_any_step_it_never_leaves_half_a_cache_with_a_manifest(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = corpus()
    expected = content(small.write(tmp_path / "whole").folder)
    for step in range(100):
        folder = small.write(tmp_path / str(step)).folder
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(removal.os, "unlink", killed_after(step))
            remove_cache(folder)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
        if Cache.exists(folder):
            Cache.open(folder).verify()
        # Whoever needs it next has it whole again.
        assert content(small.write(folder.parent).folder) == expected
    assert step == 4
    assert not folder.exists()


def test_a_harvest_that_begins_meanwhile_is_not_disturbed(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = corpus()
    folder = small.write(tmp_path).folder
    expected = content(folder)
    fsync = os.fsync

    def harvested_meanwhile(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        fsync(descriptor)
        small.write(tmp_path)

    monkeypatch.setattr(os, "fsync", harvested_meanwhile)
    assert remove_cache(folder).left == tuple(expected)
    assert content(folder) == expected


def test_a_temporary_file_that_a_process_has_taken_over_stays(
    cache: Cache, corpus: "Callable[..., SmallCorpus]"
) -> None:
    (cache.folder / "manifest.json").unlink()
    (cache.folder / "shard-00000.safetensors.tmp").write_text("of a dead process")
    writer = CacheWriter(cache.folder.parent, corpus().key)
    with writer.claim(0) as shard:
        assert shard is not None
        writer.close()  # as between taking the file and saying so
        assert remove_cache(cache.folder).left == ("shard-00000.safetensors.tmp",)
        shard.write(*corpus().shard(0))
    assert writer.missing(3) == [1, 2]
