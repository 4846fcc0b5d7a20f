import ctypes
import errno
import itertools
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from palinka.data.cache import Cache
from palinka.data.format import as_input_error
from palinka.data.writer import CacheWriter, is_harvested, read_description, tidy
from palinka.errors import InputError

if TYPE_CHECKING:
    from conftest import Corpora, SmallCorpus

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
    corpus: "Corpora", tmp_path: Path, dtype: str, skip: int
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


def test_the_same_rows_give_the_same_bytes(corpus: "Corpora", tmp_path: Path) -> None:
    one, other = corpus().write(tmp_path / "one"), corpus().write(tmp_path / "other")
    assert content(one.folder) == content(other.folder)
    assert list(content(one.folder)) == [
        "manifest.json",
        *(f"shard-0000{index}.safetensors" for index in range(3)),
    ]


def test_pieces_do_not_show(
    corpus: "Corpora", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = corpus().write(tmp_path / "whole")
    monkeypatch.setattr("palinka.data.writer._CHUNK_BYTES", 5 * 12)
    pieces = corpus().write(tmp_path / "pieces")
    for name in names(whole.folder):
        if name != "manifest.json":
            assert (whole.folder / name).read_bytes() == (pieces.folder / name).read_bytes()
    np.testing.assert_allclose(whole.statistics.sum, pieces.statistics.sum, rtol=1e-12)


def test_statistics_are_those_of_the_rows(corpus: "Corpora", tmp_path: Path) -> None:
    small = corpus(dtype="float16", skip=1)
    statistics = small.write(tmp_path).statistics
    rows = small.activations.double().numpy()
    norms = np.linalg.norm(rows, axis=1)
    assert statistics.rows == len(rows) == 35
    np.testing.assert_allclose(statistics.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.mean_norm, norms.mean(), rtol=1e-12)
    np.testing.assert_allclose(statistics.total_variance, rows.var(axis=0).sum(), rtol=1e-12)


def test_shards_in_any_order_by_any_writer_give_the_same_cache(
    corpus: "Corpora", tmp_path: Path
) -> None:
    small = corpus()
    expected = content(small.write(tmp_path / "one").folder)
    for index in (2, 0, 1):
        write(CacheWriter(tmp_path / "other", small.key), index, small.shard(index))
    assert content(CacheWriter(tmp_path / "other", small.key).finish(3).folder) == expected


def test_finished_shards_are_not_claimed_again(corpus: "Corpora", tmp_path: Path) -> None:
    small = corpus()
    writer = CacheWriter(tmp_path, small.key)
    write(writer, 1, small.shard(1))
    assert [claim.index for claim, _ in writer.missing(range(3))] == [0, 2]
    assert [claim.index for claim, _ in writer.missing(range(3), rank=1, world_size=2)] == []
    assert not writer.finished
    with pytest.raises(InputError, match=r"shard-00000\.safetensors: incomplete; rerun harvest"):
        writer.finish(3)
    for claim, index in writer.missing(range(3)):
        claim.write(*small.shard(index))
    before = content(writer.finish(3).folder)
    assert writer.finished
    assert list(writer.missing(range(3))) == []
    assert content(writer.finish(3).folder) == before


def test_a_cache_without_shards_is_refused(corpus: "Corpora", tmp_path: Path) -> None:
    with pytest.raises(InputError, match="incomplete; rerun"):
        CacheWriter(tmp_path, corpus().key).finish(0)


def test_a_claim_excludes_others_until_it_ends(corpus: "Corpora", tmp_path: Path) -> None:
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
    corpus: "Corpora", tmp_path: Path, damage: str
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
    assert [index for index in range(3) if not writer.done(index)] == [1]
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

    for name in ("open", "fsync", "replace", "unlink", "close"):
        counted(name)


def test_killed_at_every_step_and_continued_the_cache_is_the_same(
    corpus: "Corpora", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = corpus(contexts=2, contexts_per_shard=1)
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
    assert 25 < step < 1000


def test_several_harvests_at_once_do_not_disturb_each_other(
    corpus: "Corpora", tmp_path: Path
) -> None:
    small = corpus(contexts=40)
    expected = content(small.write(tmp_path / "one").folder)
    writer = CacheWriter(tmp_path / "both", small.key)

    def harvest() -> None:
        while not all(map(writer.done, range(small.shards))):
            for claim, index in writer.missing(range(small.shards)):
                claim.write(*small.shard(index))
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
        ("float16", "inf", "rows hold NaN or infinities; .* above 65504 as bfloat16 or float32"),
        ("float16", "nan", "rows hold NaN or infinities; check the language model"),
        ("float32", "-inf", "rows hold NaN or infinities; check the language model"),
        ("bfloat16", "nan", "rows hold NaN or infinities; check the language model"),
    ],
)
def test_nan_and_infinities_are_refused(
    corpus: "Corpora", tmp_path: Path, dtype: str, value: str, message: str
) -> None:
    small = corpus(dtype=dtype)
    writer = CacheWriter(tmp_path, small.key)
    activations, *tables = small.shard(0)
    activations[5, 1] = float(value)
    with pytest.raises(InputError, match=r"shard-00000\.safetensors: " + message):
        write(writer, 0, (activations, *tables))
    assert names(writer.folder) == ["harvest.json"]


def test_large_but_finite_numbers_are_kept(corpus: "Corpora", tmp_path: Path) -> None:
    small = corpus(contexts=1)
    writer = CacheWriter(tmp_path, small.key)
    activations, *tables = small.shard(0)
    activations[:] = torch.finfo(torch.float32).max
    write(writer, 0, (activations, *tables))
    assert writer.finish(1).statistics.mean_norm > 1e38


def test_input_that_does_not_fit_is_rejected(corpus: "Corpora", tmp_path: Path) -> None:
    small = corpus()
    activations, tokens, documents, positions = small.shard(0)
    for given, message in [
        ((activations[:-1], tokens, documents, positions), r"\(15, 3\) in .*expected \(16, 3\)"),
        ((activations.half(), tokens, documents, positions), "in torch.float16 given, expected"),
        ((activations, tokens, documents[:1], positions), r"documents \(1, 8\)"),
        ((activations, tokens, documents, positions[:, :7]), r"positions \(2, 7\)"),
        ((activations[:0], tokens[:0], documents[:0], positions[:0]), "1 to 2 contexts"),
    ]:
        writer = CacheWriter(tmp_path, small.key)
        with pytest.raises(InputError, match=message):
            write(writer, 0, given)
        assert names(writer.folder) == ["harvest.json"]


def test_no_space_left_leaves_nothing_torn(corpus: "Corpora", tmp_path: Path) -> None:
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
    corpus: "Corpora", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = corpus(contexts=2, contexts_per_shard=1)
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

    for name in ("open", "fsync", "replace"):
        counted(name)


def test_folders_that_cannot_be_made_are_named(corpus: "Corpora", tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"file/[0-9a-f]{16}: .*Not a directory.*PALINKA_CACHE"):
        CacheWriter(tmp_path / "file", corpus().key)


def test_a_folder_without_permission_is_named(corpus: "Corpora", tmp_path: Path) -> None:
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


def test_a_writer_that_wrote_nothing_leaves_no_folder(corpus: "Corpora", tmp_path: Path) -> None:
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


def test_a_claimed_cache_is_described_and_being_harvested(
    corpus: "Corpora", tmp_path: Path
) -> None:
    small = corpus()
    writer = CacheWriter(tmp_path, small.key)
    assert not is_harvested(writer.folder)
    for claim, index in writer.missing(range(3)):
        assert read_description(writer.folder).digest == small.key.digest
        assert is_harvested(writer.folder)
        claim.write(*small.shard(index))
    assert not is_harvested(writer.folder)
    writer.finish(3)
    assert names(writer.folder) == [
        "manifest.json",
        *(f"shard-0000{i}.safetensors" for i in (0, 1, 2)),
    ]


def test_a_dead_process_holds_no_claim(corpus: "Corpora", tmp_path: Path) -> None:
    small = corpus()
    child = os.fork()
    if child == 0:
        with CacheWriter(tmp_path, small.key).claim(0):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    folder = small.key.folder(tmp_path)
    assert names(folder) == ["harvest.json", "shard-00000.lock"]
    assert not is_harvested(folder)
    with CacheWriter(tmp_path, small.key).claim(0) as claim:
        assert claim is not None
    assert names(folder) == ["harvest.json"]


@pytest.mark.parametrize("damage", ["torn", "empty", "missing", "other kind"])
def test_a_description_that_is_damaged_is_named(
    corpus: "Corpora", tmp_path: Path, damage: str
) -> None:
    writer = CacheWriter(tmp_path, corpus().key)
    with writer.claim(0):
        pass
    path = writer.folder / "harvest.json"
    if damage == "missing":
        path.unlink()
    elif damage == "other kind":
        path.write_text('{"format": "palinka-activations", "version": 1}')
    else:
        path.write_bytes(path.read_bytes()[:-5] if damage == "torn" else b"")
    with pytest.raises(InputError, match=r"harvest\.json: "):
        read_description(writer.folder)


LEFTOVERS = [
    "harvest.json",
    "harvest.json.tmp",
    "harvest.lock",
    "manifest.json.tmp",
    "shard-00000.json",
    "shard-00000.lock",
    "shard-00001.json.tmp",
    "shard-00002.safetensors.tmp",
]


def test_tidying_removes_what_dead_processes_left_and_nothing_else(cache: Cache) -> None:
    whole = names(cache.folder)
    for name in LEFTOVERS:
        (cache.folder / name).write_text("left")
    (cache.folder / "notes.tmp").write_text("of a user")
    tidy(cache.folder)
    assert names(cache.folder) == sorted([*whole, "notes.tmp"])


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
    with pytest.raises(InputError, match=message), as_input_error(Path("x")):
        raise OSError(number, os.strerror(number))


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


def refused(small: "SmallCorpus", root: Path) -> str:
    with pytest.raises(InputError) as error:
        small.write(root)
    message = str(error.value)
    assert message.startswith(str(small.key.folder(root)))
    assert "\n" not in message
    assert not list(root.glob("*/*.tmp"))
    return message


def test_a_full_disk_is_named_and_the_harvest_goes_on_once_there_is_room(
    corpus: "Corpora", tmp_path: Path
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
        assert [writer.done(index) for index in range(3)].count(True) == 1
        assert not writer.finished
        ballast.unlink()
        assert content(small.write(disk).folder) == expected

    on_a_small_disk(disk, work)


def test_a_read_only_disk_is_named_and_its_finished_caches_are_read(
    corpus: "Corpora", tmp_path: Path
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
