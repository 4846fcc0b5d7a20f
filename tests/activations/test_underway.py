"""What an unfinished cache says of itself, and whether anybody is at work on it."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from palinka.data import writer as underway
from palinka.data.cache import Cache
from palinka.data.files import Replacement, replacement
from palinka.data.writer import CacheWriter, attend, read_description, tidy, unattended
from palinka.errors import InputError

if TYPE_CHECKING:
    from conftest import SmallCorpus


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_free(folder: Path) -> bool:
    with unattended(folder) as free:
        return free


def test_a_cache_says_what_it_will_be_from_its_first_claim_to_its_end(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small = corpus()
    writer = CacheWriter(tmp_path, small.key)
    assert is_free(writer.folder)
    for index in range(3):
        with writer.claim(index) as shard:
            assert shard is not None
            assert read_description(writer.folder).digest == small.key.digest
            assert not is_free(writer.folder)
            shard.write(*small.shard(index))
        assert not is_free(writer.folder)
    before = (writer.folder / "harvest.json").stat().st_ino
    other = CacheWriter(tmp_path, small.key)
    with other.claim(0) as shard:
        assert shard is None
    writer.close()
    assert is_free(writer.folder)
    assert (writer.folder / "harvest.json").stat().st_ino == before
    writer.finish(3)
    assert names(writer.folder) == [
        "manifest.json",
        *(f"shard-0000{i}.safetensors" for i in (0, 1, 2)),
    ]


def test_a_dead_process_is_not_at_work(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small = corpus()
    child = os.fork()
    if child == 0:
        with CacheWriter(tmp_path, small.key).claim(0):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    folder = small.key.folder(tmp_path)
    assert names(folder) == ["harvest.json", "shard-00000.safetensors.tmp"]
    assert is_free(folder)


def test_all_who_begin_at_once_are_at_work_on_one_description(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small = corpus()
    descriptors: list[int] = []

    def begin(barrier: threading.Barrier, folder: Path) -> None:
        barrier.wait(10)
        descriptors.append(attend(folder, small.key))

    for attempt in range(30):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        barrier = threading.Barrier(4)
        threads = [threading.Thread(target=begin, args=(barrier, folder)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        # Nobody waits for another to end its work, and nobody's lock lies on a lost file.
        assert not any(thread.is_alive() for thread in threads)
        there = (folder / "harvest.json").stat()
        while descriptors:
            assert os.path.samestat(os.fstat(descriptors[-1]), there)
            assert not is_free(folder)
            os.close(descriptors.pop())
        assert names(folder) == ["harvest.json"]
        assert is_free(folder)


def test_a_description_is_not_written_twice(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = corpus().key
    others: list[int] = []

    def late(path: Path, *, wait: bool) -> AbstractContextManager[Replacement | None]:
        """Another process comes between the look at the description and its writing."""
        monkeypatch.undo()
        others.append(attend(tmp_path, key))
        return replacement(path, wait=wait)

    monkeypatch.setattr(underway, "replacement", late)
    mine = attend(tmp_path, key)
    assert os.path.samestat(os.fstat(mine), os.fstat(others[0]))
    os.close(mine)
    assert not is_free(tmp_path)
    os.close(others[0])
    assert is_free(tmp_path)


def test_a_description_that_went_away_is_written_again(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    writer = CacheWriter(tmp_path, corpus().key)
    for _ in range(2):
        with writer.claim(0):
            assert not is_free(writer.folder)
        (writer.folder / "harvest.json").unlink()


def test_whoever_begins_waits_for_a_removal_to_end(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    key = corpus().key
    os.close(attend(tmp_path, key))
    began = threading.Event()

    def begin() -> None:
        os.close(attend(tmp_path, key))
        began.set()

    with unattended(tmp_path) as free:
        assert free
        thread = threading.Thread(target=begin)
        thread.start()
        assert not began.wait(0.1)
        (tmp_path / "harvest.json").unlink()
    assert began.wait(10)
    thread.join()
    assert read_description(tmp_path).digest == key.digest


@pytest.mark.parametrize("damage", ["flipped", "empty", "missing", "link", "other kind"])
def test_a_description_that_is_damaged_is_named(cache: Cache, damage: str) -> None:
    path = cache.folder / "harvest.json"
    os.close(attend(cache.folder, cache.key))
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flipped":
        content[20] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.touch()
    elif damage == "link":
        path.symlink_to("/etc/passwd")
    elif damage == "other kind":
        path.write_bytes((cache.folder / "manifest.json").read_bytes())
    with pytest.raises(InputError, match=r"harvest\.json: "):
        read_description(cache.folder)


LEFTOVERS = [
    "harvest.json",
    "harvest.json.tmp",
    "manifest.json.tmp",
    "shard-00000.json",
    "shard-00001.json.tmp",
    "shard-00002.safetensors.tmp",
]


def test_tidying_takes_what_dead_processes_left_and_nothing_else(
    cache: Cache, tmp_path: Path
) -> None:
    whole = names(cache.folder)
    for name in LEFTOVERS:
        (cache.folder / name).write_text("left")
    (cache.folder / "notes.tmp").write_text("of a user")
    (tmp_path / "precious").write_text("stays")
    (cache.folder / "shard-00001.json").symlink_to(tmp_path / "precious")
    tidy(cache.folder)
    assert names(cache.folder) == sorted([*whole, "notes.tmp"])
    assert (tmp_path / "precious").read_text() == "stays"


def test_tidying_leaves_what_another_process_is_writing(
    cache: Cache, corpus: "Callable[..., SmallCorpus]"
) -> None:
    with replacement(cache.folder / "manifest.json") as new:
        assert new is not None
        tidy(cache.folder)
        new.file.write((cache.folder / "manifest.json").read_bytes())
        new.commit()
    Cache.open(cache.folder).verify()
