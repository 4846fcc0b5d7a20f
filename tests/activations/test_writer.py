import errno
import itertools
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from palinka.data.cache import Cache
from palinka.data.writer import CacheWriter
from palinka.errors import InputError

if TYPE_CHECKING:
    from conftest import SmallCorpus

    Table = NDArray[np.int64]
    Rows = tuple[torch.Tensor, Table, Table, Table]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(writer: CacheWriter, index: int, rows: "Rows") -> None:
    with writer.claim(index) as shard:
        assert shard is not None
        shard.write(*rows)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("skip", [0, 2])
def test_a_shard_is_what_the_format_says(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path, dtype: str, skip: int
) -> None:
    small = corpus(dtype=dtype, skip=skip, seed=5)
    folder = small.write(tmp_path).folder
    for index in range(small.shards):
        activations, tokens, documents, positions = small.shard(index)
        shard = load_file(folder / f"shard-{index:05d}.safetensors")
        assert (shard["tokens"].numpy() == tokens).all()
        assert (shard["documents"].numpy() == documents).all()
        assert (shard["positions"].numpy() == positions).all()
        # Every row once, at the place in the tables that it came from.
        places = shard["index"].long()
        assert sorted(places.tolist()) == [
            i for i in range(tokens.size) if i % tokens.shape[1] >= skip
        ]
        everywhere = torch.zeros(tokens.size, activations.shape[1], dtype=activations.dtype)
        kept = torch.arange(tokens.size) % tokens.shape[1] >= skip
        everywhere[kept] = activations
        assert torch.equal(shard["activations"], everywhere[places])


def test_the_same_rows_give_the_same_bytes(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    one, other = corpus().write(tmp_path / "one"), corpus().write(tmp_path / "other")
    assert content(one.folder) == content(other.folder)
    assert list(content(one.folder)) == [
        "manifest.json",
        *(f"shard-0000{index}.safetensors" for index in range(3)),
    ]


def test_pieces_do_not_show(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = corpus().write(tmp_path / "whole")
    monkeypatch.setattr("palinka.data.writer._PIECE_BYTES", 5 * 12)
    pieces = corpus().write(tmp_path / "pieces")
    for name in names(whole.folder):
        if name != "manifest.json":
            assert (whole.folder / name).read_bytes() == (pieces.folder / name).read_bytes()
    np.testing.assert_allclose(whole.statistics.sum, pieces.statistics.sum, rtol=1e-12)


def test_statistics_are_those_of_the_rows(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small = corpus(dtype="float16", skip=1)
    statistics = small.write(tmp_path).statistics
    rows = small.activations.double().numpy()
    norms = np.linalg.norm(rows, axis=1)
    assert statistics.rows == len(rows) == 35
    np.testing.assert_allclose(statistics.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.mean_norm, norms.mean(), rtol=1e-12)
    np.testing.assert_allclose(statistics.total_variance, rows.var(axis=0).sum(), rtol=1e-12)


def test_shards_in_any_order_by_any_writer_give_the_same_cache(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small = corpus()
    expected = content(small.write(tmp_path / "one").folder)
    for index in (2, 0, 1):
        write(CacheWriter(tmp_path / "other", small.key), index, small.shard(index))
    assert content(CacheWriter(tmp_path / "other", small.key).finish(3).folder) == expected


def test_what_is_done_is_not_done_again(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small = corpus()
    writer = CacheWriter(tmp_path, small.key)
    assert writer.missing(3) == [0, 1, 2]
    write(writer, 1, small.shard(1))
    assert writer.missing(3) == [0, 2]
    with writer.claim(1) as shard:
        assert shard is None
    assert not writer.finished
    with pytest.raises(InputError, match=r"shard-00000\.safetensors: not written yet"):
        writer.finish(3)
    write(writer, 0, small.shard(0))
    write(writer, 2, small.shard(2))
    before = content(writer.finish(3).folder)
    assert writer.finished
    assert writer.missing(3) == []
    for index in range(3):
        with writer.claim(index) as shard:
            assert shard is None
    assert content(writer.finish(3).folder) == before


def test_a_cache_without_shards_is_refused(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="not written yet"):
        CacheWriter(tmp_path, corpus().key).finish(0)


def test_a_claim_excludes_others_until_it_ends(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small = corpus()
    one, other = CacheWriter(tmp_path, small.key), CacheWriter(tmp_path, small.key)
    with one.claim(0) as mine:
        assert mine is not None
        with other.claim(0) as theirs:
            assert theirs is None
        with other.claim(1) as theirs:
            assert theirs is not None
    with other.claim(0) as theirs:
        assert theirs is not None
    assert names(one.folder) == ["harvest.json"]


@pytest.mark.parametrize("damage", ["no record", "torn record", "torn shard", "no shard", "other"])
def test_a_shard_that_is_not_whole_is_written_again(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path, damage: str
) -> None:
    small = corpus()
    expected = content(small.write(tmp_path / "whole").folder)
    writer = CacheWriter(tmp_path / "torn", small.key)
    for index in range(3):
        write(writer, index, small.shard(index))
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
        other = corpus(seed=1)
        write(CacheWriter(tmp_path / "other", other.key), 1, other.shard(1))
        record.write_bytes((other.key.folder(tmp_path / "other") / record.name).read_bytes())
    assert writer.missing(3) == [1]
    write(writer, 1, small.shard(1))
    assert content(writer.finish(3).folder) == expected


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill this process at its `step`-th call that touches the disk."""
    left = step

    def counted(name: str) -> None:
        original = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("open", "fsync", "rename", "unlink", "ftruncate"):
        counted(name)


def test_killed_at_every_step_and_continued_the_cache_is_the_same(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = corpus(blocks=2, blocks_per_shard=1)
    expected = content(small.write(tmp_path / "whole").folder)
    for step in range(1000):
        root = tmp_path / str(step)
        child = os.fork()
        if child == 0:
            kill_at(step, monkeypatch)
            small.write(root)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
        folder = small.key.folder(root)
        if folder.exists() and not Cache.exists(folder):
            with pytest.raises(InputError, match="no finished cache"):
                Cache.open(folder)
        assert content(small.write(root).folder) == expected
    assert 30 < step < 1000


def test_two_harvests_at_once_do_not_disturb_each_other(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small = corpus(blocks=40)
    expected = content(small.write(tmp_path / "one").folder)
    writer = CacheWriter(tmp_path / "both", small.key)

    def harvest() -> None:
        while missing := writer.missing(small.shards):
            for index in missing:
                with writer.claim(index) as shard:
                    if shard is not None:
                        shard.write(*small.shard(index))
        writer.finish(small.shards)

    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                harvest()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert content(writer.folder) == expected


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("float16", "inf", "1 of 16 rows hold .* too large for float16 .* bfloat16 or float32"),
        ("float16", "nan", "1 of 16 rows hold NaN or infinities; check the language model"),
        ("float32", "-inf", "1 of 16 rows hold NaN or infinities; check the language model"),
        ("bfloat16", "nan", "1 of 16 rows hold NaN or infinities; check the language model"),
    ],
)
def test_nan_and_infinities_are_refused(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path, dtype: str, value: str, message: str
) -> None:
    small = corpus(dtype=dtype)
    writer = CacheWriter(tmp_path, small.key)
    activations, *tables = small.shard(0)
    activations[5, 1] = float(value)
    with pytest.raises(InputError, match=r"shard-00000\.safetensors: " + message):
        write(writer, 0, (activations, *tables))
    assert names(writer.folder) == ["harvest.json"]


def test_large_but_finite_numbers_are_kept(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small = corpus(blocks=1)
    writer = CacheWriter(tmp_path, small.key)
    activations, *tables = small.shard(0)
    activations[:] = torch.finfo(torch.float32).max
    write(writer, 0, (activations, *tables))
    assert writer.finish(1).statistics.mean_norm > 1e38


def test_input_that_does_not_fit_is_refused(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small = corpus()
    activations, tokens, documents, positions = small.shard(0)
    huge = tokens + 2**31
    for given, message in [
        ((activations[:-1], tokens, documents, positions), r"shape \(15, 3\) .*expected \(16, 3\)"),
        ((activations[:, :2], tokens, documents, positions), r"shape \(16, 2\) given"),
        ((activations.half(), tokens, documents, positions), "torch.float16 given, expected"),
        ((activations, tokens, documents[:1], positions), r"documents of shape \(1, 8\) given"),
        ((activations, tokens, documents, positions[:, :7]), r"positions of shape \(2, 7\)"),
        ((activations, huge, documents, positions), "tokens beyond 32 bits"),
        ((activations[:0], tokens[:0], documents[:0], positions[:0]), "0 blocks given"),
        ((activations, *(np.tile(t, (2, 1)) for t in (tokens, tokens, tokens))), "4 blocks given"),
    ]:
        writer = CacheWriter(tmp_path, small.key)
        with pytest.raises(InputError, match=message):
            write(writer, 0, given)
        assert names(writer.folder) == ["harvest.json"]


def test_no_space_left_leaves_nothing_torn(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small = corpus()
    child = os.fork()
    if child == 0:
        # A file size limit stands for a full disk: the write fails midway.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
        try:
            small.write(tmp_path)
        except InputError as error:
            print(error)
            os._exit(0 if "shard-00000.safetensors: File too large" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert names(small.key.folder(tmp_path)) == ["harvest.json"]
    small.write(tmp_path).verify()


def test_a_disk_that_is_full_at_any_step_is_named_and_leaves_nothing_torn(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = corpus(blocks=2, blocks_per_shard=1)
    expected = content(small.write(tmp_path / "whole").folder)
    for step in range(1000):
        root = tmp_path / str(step)
        folder = small.key.folder(root)
        with monkeypatch.context() as patch:
            full_at(step, patch)
            try:
                small.write(root)
                break
            except InputError as error:
                named = str(error)
        assert named.startswith(f"{folder}")
        assert "no space left; free some or choose another cache folder" in named
        assert "\n" not in named
        assert not [name for name in names(folder) if name.endswith(".tmp")]
        assert content(small.write(root).folder) == expected
    assert 15 < step < 1000


def full_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full from the `step`-th call on that takes space, for a single call."""
    calls = itertools.count()

    def counted(name: str) -> None:
        original = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            takes_space = name != "open" or (isinstance(args[1], int) and args[1] & os.O_CREAT)
            if takes_space and next(calls) == step:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("open", "fsync", "rename"):
        counted(name)


def test_folders_that_cannot_be_made_are_named(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"file/[0-9a-f]{16}: .*Not a directory.*PALINKA_CACHE"):
        CacheWriter(tmp_path / "file", corpus().key)


def test_a_folder_without_permission_is_named(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    writer = CacheWriter(tmp_path, corpus().key)
    writer.folder.chmod(0o555)
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:  # whom nothing is forbidden
            os.setuid(65534)
        try:
            with writer.claim(0):
                os._exit(1)
        except InputError as error:
            named = str(error).startswith(str(writer.folder)) and "permission denied" in str(error)
            os._exit(0 if named else 2)
        finally:
            os._exit(3)
    assert os.waitpid(child, 0)[1] == 0
    assert names(writer.folder) == []


def test_a_writer_that_wrote_nothing_leaves_no_folder(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small = corpus()
    writer = CacheWriter(tmp_path / "new" / "root", small.key)
    other = CacheWriter(tmp_path / "new" / "root", small.key)
    writer.abandon()
    assert names(tmp_path) == []
    with other.claim(0):
        pass
    assert names(other.folder) == ["harvest.json"]
    other.abandon()
    assert not other.folder.exists()
    # Another run, which found the folders there, is not disturbed.
    write(other, 0, small.shard(0))
    other.abandon()
    assert names(writer.folder) == ["harvest.json", "shard-00000.json", "shard-00000.safetensors"]
