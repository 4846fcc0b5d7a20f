import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from palinka.data.cache import Cache
from palinka.data.inventory import StoredCache, remove_cache, stored_caches
from palinka.errors import InputError

if TYPE_CHECKING:
    from conftest import Corpora


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
    corpus: "Corpora", tmp_path: Path
) -> None:
    small = corpus()
    writer = small.begin(tmp_path, [0, 2])
    with writer.claim(1):
        found = only(tmp_path)
    # Shards of two contexts and of one, of eight rows each.
    assert (found.state, found.rows, found.problem) == ("harvesting", 24, "")
    assert found.key is not None
    assert found.key.settings == small.key.settings
    assert only(tmp_path).state == "incomplete"
    (writer.folder / "shard-00002.safetensors").write_bytes(b"torn")
    assert only(tmp_path).rows == 16
    (writer.folder / "harvest.json").write_text("{}")
    found = only(tmp_path)
    assert (found.state, found.key, found.rows) == ("incomplete", None, None)
    assert "harvest.json: damaged" in found.problem
    (writer.folder / "harvest.json").unlink()
    assert "harvest.json: not found" in only(tmp_path).problem


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("shard-00001.safetensors", Path.unlink),
        ("shard-00001.safetensors", lambda path: os.truncate(path, 100)),
        ("manifest.json", lambda path: os.truncate(path, path.stat().st_size - 3)),
    ],
)
def test_a_damaged_cache_is_named(cache: Cache, file: str, damage: Any) -> None:
    damage(cache.folder / file)
    found = only(cache.folder.parent)
    assert (found.state, found.key, found.rows) == ("damaged", None, None)
    assert file in found.problem
    assert "\n" not in found.problem


def test_what_is_no_cache_is_named_and_not_followed(cache: Cache, tmp_path: Path) -> None:
    root = tmp_path / "others"
    (root / "a folder" / "below").mkdir(parents=True)
    (root / "a folder" / "notes.txt").write_text("of a user")
    (root / "file").write_text("")
    (root / "link").symlink_to(cache.folder)
    found = stored_caches(root)
    assert [path.name for path in sorted(root.iterdir())] == [c.path.name for c in found]
    assert {(c.state, c.key, c.rows, c.bytes) for c in found} == {("no cache", None, None, 0)}
    assert all(c.problem.startswith(str(c.path)) for c in found)
    with pytest.raises(InputError, match="none: not found"):
        stored_caches(tmp_path / "none")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_cache_goes_with_its_folder_unless_others_put_files_there(
    corpus: "Corpora", tmp_path: Path
) -> None:
    folder = corpus().write(tmp_path).folder
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert remove_cache(folder) == (size, [])
    assert list(tmp_path.iterdir()) == []
    corpus().write(tmp_path)
    (folder / "notes.txt").write_text("of a user")
    (folder / "shard-00008.json").mkdir()
    left = ["notes.txt", "shard-00008.json"]
    assert remove_cache(folder)[1] == left
    assert sorted(path.name for path in folder.iterdir()) == left


def test_one_that_is_being_harvested_is_kept(corpus: "Corpora", tmp_path: Path) -> None:
    writer = corpus().begin(tmp_path, [0])
    with writer.claim(1):
        before = content(writer.folder)
        with pytest.raises(InputError, match="in use by a running harvest; stop it first"):
            remove_cache(writer.folder)
        assert content(writer.folder) == before
    assert remove_cache(writer.folder)[1] == []
    assert not writer.folder.exists()


def test_killed_at_any_step_it_never_leaves_half_a_cache_with_a_manifest(
    corpus: "Corpora", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = corpus()
    expected = content(small.write(tmp_path / "whole").folder)
    for step in range(100):
        folder = small.write(tmp_path / str(step)).folder
        child = os.fork()
        if child == 0:
            left = iter(range(step))
            unlink = os.unlink

            def counted(*args: Any, **kwargs: Any) -> None:
                if next(left, None) is None:  # noqa: B023
                    os.kill(os.getpid(), signal.SIGKILL)
                unlink(*args, **kwargs)  # noqa: B023

            monkeypatch.setattr(os, "unlink", counted)
            remove_cache(folder)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
        if Cache.exists(folder):
            Cache.open(folder).verify()
        # The next harvest has it whole again.
        assert content(small.write(folder.parent).folder) == expected
    assert step == 4
    assert not folder.exists()
