"""What lies in a folder of caches, whatever state it is in."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from palinka.data.cache import Cache
from palinka.data.inventory import StoredCache, stored_caches
from palinka.data.writer import CacheWriter
from palinka.errors import InputError

if TYPE_CHECKING:
    from conftest import SmallCorpus


def only(root: Path) -> StoredCache:
    (found,) = stored_caches(root)
    return found


def test_a_complete_cache(cache: Cache) -> None:
    found = only(cache.folder.parent)
    size = sum(path.stat().st_size for path in cache.folder.iterdir())
    assert found == StoredCache(cache.folder, "complete", found.key, 40, size)
    assert found.key is not None
    assert found.key.digest == cache.key.digest


def test_a_cache_that_is_being_harvested_and_one_that_was_left(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small = corpus()
    writer = CacheWriter(tmp_path, small.key)
    for index in (0, 2):
        with writer.claim(index) as shard:
            assert shard is not None
            shard.write(*small.shard(index))
    found = only(tmp_path)
    # Shards of two blocks and of one, of eight rows each.
    assert (found.state, found.rows, found.problem) == ("harvesting", 24, "")
    assert found.key is not None
    assert found.key.settings == small.key.settings
    writer.close()
    assert only(tmp_path).state == "incomplete"
    (writer.folder / "shard-00002.safetensors").write_bytes(b"torn")
    assert only(tmp_path).rows == 16
    # A record as only an intruder would name it.
    (writer.folder / "shard-000000.json").write_bytes(
        (writer.folder / "shard-00000.json").read_bytes()
    )
    assert only(tmp_path).rows == 16
    (writer.folder / "harvest.json").write_text("{}")
    found = only(tmp_path)
    assert (found.state, found.key, found.rows) == ("incomplete", None, None)
    assert "harvest.json: damaged" in found.problem
    (writer.folder / "harvest.json").unlink()
    assert "harvest.json: not found" in only(tmp_path).problem


@pytest.mark.parametrize("damage", ["no shard", "cut", "manifest", "link", "folder"])
def test_a_damaged_cache_is_named(cache: Cache, damage: str) -> None:
    shard, manifest = cache.folder / "shard-00001.safetensors", cache.folder / "manifest.json"
    if damage == "no shard":
        shard.unlink()
    elif damage == "cut":
        os.truncate(shard, 100)
    elif damage == "manifest":
        manifest.write_bytes(manifest.read_bytes()[:-1])
    else:
        manifest.unlink()
        if damage == "link":
            manifest.symlink_to("/etc/passwd")
        else:
            manifest.mkdir()
    found = only(cache.folder.parent)
    assert (found.state, found.key, found.rows) == ("damaged", None, None)
    assert ("shard-00001" if damage in ("no shard", "cut") else "manifest.json") in found.problem
    assert "\n" not in found.problem


def test_what_is_no_cache_is_named_and_not_followed(cache: Cache, tmp_path: Path) -> None:
    root = tmp_path / "others"
    (root / "a folder" / "below").mkdir(parents=True)
    (root / "a folder" / "notes.txt").write_text("of a user")
    (root / "file").write_text("")
    (root / "link").symlink_to(cache.folder)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    found = stored_caches(root)
    assert [path.name for path in sorted(root.iterdir())] == [c.path.name for c in found]
    assert {(c.state, c.key, c.rows, c.bytes) for c in found} == {("no cache", None, None, 0)}
    assert all(c.problem.startswith(str(c.path)) for c in found)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: not found"):
        stored_caches(tmp_path / "none")
