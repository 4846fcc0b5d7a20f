import errno
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from palinka.data import Cache, CacheWriter
from palinka.data.writer import is_harvested, read_description, tidy
from palinka.errors import InputError

if TYPE_CHECKING:
    from conftest import Corpora


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_first(writer: CacheWriter, *rows: Any) -> None:
    with writer.claim(0) as mine:
        assert mine
        writer.write(0, *rows)


def test_the_same_rows_give_the_same_bytes_in_any_pieces_and_in_any_order_by_any_writer(
    corpus: "Corpora", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = corpus()
    whole = small.write(tmp_path / "one")
    shards = [f"shard-0000{index}.safetensors" for index in range(3)]
    assert names(whole.folder) == ["manifest.json", *shards]
    for index in (2, 0, 1):
        small.begin(tmp_path / "other", [index])
    assert content(small.write(tmp_path / "other").folder) == content(whole.folder)
    monkeypatch.setattr("palinka.data.writer._CHUNK_BYTES", 5 * 12)
    pieces = small.write(tmp_path / "pieces")
    for name in shards:
        assert (whole.folder / name).read_bytes() == (pieces.folder / name).read_bytes()
    np.testing.assert_allclose(whole.statistics.sum, pieces.statistics.sum, rtol=1e-12)


def test_finished_shards_are_not_claimed_again(corpus: "Corpora", tmp_path: Path) -> None:
    small = corpus()
    with pytest.raises(InputError, match="incomplete; rerun"):
        CacheWriter(tmp_path, small.key).finish(0)
    writer = small.begin(tmp_path, [1])
    with pytest.raises(InputError, match=r"shard-00000\.safetensors: incomplete; rerun harvest"):
        writer.finish(3)
    assert not is_harvested(writer.folder)
    for index in range(3):
        with writer.claim(index) as mine:
            assert mine == (index != 1)
            if mine:
                assert read_description(writer.folder).digest == small.key.digest
                assert is_harvested(writer.folder)
                writer.write(index, *small.shard(index))
    assert not is_harvested(writer.folder)
    before = content(writer.finish(3).folder)
    with writer.claim(0) as mine:
        assert not mine
    assert content(writer.finish(3).folder) == before


def test_a_claim_excludes_others_until_it_ends_or_its_process_dies(
    corpus: "Corpora", tmp_path: Path
) -> None:
    small = corpus()
    one, other = CacheWriter(tmp_path, small.key), CacheWriter(tmp_path, small.key)
    with one.claim(0) as mine, other.claim(0) as theirs, other.claim(1) as free:
        assert (mine, theirs, free) == (True, False, True)
    assert names(one.folder) == ["harvest.json"]
    child = os.fork()
    if child == 0:
        with one.claim(0):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert names(one.folder) == ["harvest.json", "shard-00000.lock"]
    assert not is_harvested(one.folder)
    with other.claim(0) as mine:
        assert mine
    assert names(one.folder) == ["harvest.json"]


@pytest.mark.parametrize("damage", ["no record", "torn record", "torn shard", "no shard", "other"])
def test_a_shard_that_is_not_whole_is_written_again(
    corpus: "Corpora", tmp_path: Path, damage: str
) -> None:
    small = corpus()
    expected = content(small.write(tmp_path / "whole").folder)
    writer = small.begin(tmp_path / "torn", range(3))
    shard, record = writer.folder / "shard-00001.safetensors", writer.folder / "shard-00001.json"
    if damage == "no record":
        record.unlink()
    elif damage == "torn record":
        record.write_bytes(record.read_bytes()[:-30])
    elif damage == "torn shard":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "no shard":
        shard.unlink()
    else:
        other = corpus(seed=1).begin(tmp_path / "other", [1])
        record.write_bytes((other.folder / record.name).read_bytes())
    assert [index for index in range(3) if not writer.done(index)] == [1]
    assert content(small.write(tmp_path / "torn").folder) == expected


def on_calls(
    monkeypatch: pytest.MonkeyPatch, functions: list[str], act: Callable[[str, int], None]
) -> None:
    """Do something before each call of some functions of `os`, given its name and number."""
    calls = itertools.count()

    def counted(name: str) -> None:
        original = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            # Opening takes space only where it may make a file.
            if name != "open" or (isinstance(args[1], int) and args[1] & os.O_CREAT):
                act(name, next(calls))
            return original(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in functions:
        counted(name)


def test_killed_at_every_step_and_continued_the_cache_is_the_same(
    corpus: "Corpora", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = corpus(contexts=2, contexts_per_shard=1)
    expected = content(small.write(tmp_path / "whole").folder)
    touching = ["open", "fsync", "replace", "unlink", "close"]
    for step in range(1000):
        root = tmp_path / str(step)
        child = os.fork()
        if child == 0:
            kill = lambda _, number: number == step and os.kill(os.getpid(), signal.SIGKILL)  # noqa: B023, E731
            on_calls(monkeypatch, touching, kill)
            small.write(root)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
        folder = small.key.folder(root)
        if folder.exists() and not Cache.exists(folder):
            with pytest.raises(InputError, match="no finished cache"):
                Cache.open(folder)
        assert content(small.write(root).folder) == expected
    assert 25 < step < 1000


def test_a_disk_that_fails_at_any_step_is_named_and_leaves_nothing_torn(
    corpus: "Corpora", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = corpus(contexts=2, contexts_per_shard=1)
    expected = content(small.write(tmp_path / "whole").folder)
    for step in range(1000):
        root = tmp_path / str(step)

        def fail(name: str, call: int, step: int = step) -> None:
            if call == step:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            on_calls(patch, ["open", "fsync", "replace"], fail)
            try:
                small.write(root)
                break
            except InputError as error:
                named = str(error)
        assert named.startswith(f"{small.key.folder(root)}")
        assert "No space left on device; fix that, or set PALINKA_CACHE" in named
        assert "\n" not in named
        assert not list(root.glob("*/*.tmp"))
        assert content(small.write(root).folder) == expected
    assert 15 < step < 1000


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_large_numbers_are_kept(corpus: "Corpora", tmp_path: Path, dtype: str) -> None:
    small = corpus(dtype=dtype)
    writer = CacheWriter(tmp_path, small.key)
    activations, contexts = small.shard(0)
    activations[:] = torch.finfo(activations.dtype).max
    write_first(writer, activations, contexts)
    assert writer.finish(1).statistics.sum_of_norms / 16 > 65504


def test_input_that_does_not_fit_is_rejected(corpus: "Corpora", tmp_path: Path) -> None:
    small = corpus()
    activations, contexts = small.shard(0)
    for given, message in [
        ((activations[:-1], contexts), r"\(15, 3\) of .*expected \(16, 3\)"),
        ((activations.half(), contexts), r"\(16, 3\) of torch.float16"),
    ]:
        writer = CacheWriter(tmp_path, small.key)
        with pytest.raises(InputError, match=message):
            write_first(writer, *given)
        assert names(writer.folder) == ["harvest.json"]


def test_folders_that_cannot_be_made_or_written_are_named(
    corpus: "Corpora", tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    folder = tmp_path / "file"
    with pytest.raises(InputError, match=rf"^{folder}/[0-9a-f]{{16}}: .* set PALINKA_CACHE"):
        corpus().begin(folder, [0])
    writer = CacheWriter(tmp_path, corpus().key)
    writer.folder.mkdir(mode=0o555)
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:  # whom nothing is forbidden
            os.setuid(65534)
        try:
            with writer.claim(0):
                os._exit(1)
        except InputError as error:
            named = str(error).startswith(str(writer.folder)) and "Permission denied" in str(error)
            os._exit(0 if named else 2)
        finally:
            os._exit(3)
    assert os.waitpid(child, 0)[1] == 0
    assert names(writer.folder) == []


def test_tidying_removes_what_dead_processes_left_and_nothing_else(cache: Cache) -> None:
    whole = names(cache.folder)
    for name in ("harvest.json", "manifest.json", "shard-00001.json", "shard-00002.safetensors"):
        (cache.folder / f"{name}.tmp").write_text("left")
    for name in ("harvest.json", "harvest.lock", "shard-00000.json", "shard-00000.lock"):
        (cache.folder / name).write_text("left")
    others = ["notes.tmp", "shard-0.json", "shard-00000.safetensors.bak"]
    for name in others:
        (cache.folder / name).write_text("of a user")
    tidy(cache.folder)
    assert names(cache.folder) == sorted([*whole, *others])
