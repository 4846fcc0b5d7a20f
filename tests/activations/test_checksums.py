"""Comparing checksums: all shards at once, or each when rows are first read from it."""

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from palinka.data import cache as checksums
from palinka.data import cache as reading
from palinka.data.cache import Cache, check_shards
from palinka.data.loader import ActivationLoader
from palinka.errors import InputError

if TYPE_CHECKING:
    from conftest import SmallCorpus


def flip(path: Path, place: int = -1, bit: int = 0) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def shard(cache: Cache, index: int) -> Path:
    return cache.folder / f"shard-{index:05d}.safetensors"


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The shards that are compared, call by call."""
    calls: list[list[int]] = []

    def counted(folder: Path, expected: Any) -> None:
        calls.append(sorted(shape.index for shape in expected))
        check_shards(folder, expected)

    monkeypatch.setattr(reading, "check_shards", counted)
    return calls


@pytest.mark.parametrize("threads", [1, 3])
def test_every_kind_of_damage_is_named_however_many_threads_there_are(
    corpus: "Callable[..., SmallCorpus]",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
) -> None:
    cache = corpus(blocks=40).write(tmp_path)
    monkeypatch.setattr(checksums, "_MOST_THREADS", threads)
    monkeypatch.setattr(checksums, "_PIECE_BYTES", 100)  # several pieces a shard
    cache.verify()
    for index in (17, 3, 9):
        flip(shard(cache, index), -random.Random(index).randrange(1, 300))
    shard(cache, 12).unlink()
    shard(cache, 5).write_bytes(b"short")
    with pytest.raises(InputError) as error:
        cache.verify()
    message = str(error.value)
    assert "\n" not in message
    damaged = ", ".join(f"shard-{index:05d}.safetensors" for index in (3, 9, 17))
    assert f"{cache.folder}: damaged, the checksum does not match in {damaged}; remove" in message
    assert f"{shard(cache, 12)}: not found" in message
    assert f"{shard(cache, 5)}: 5 bytes, expected" in message
    assert message.count("shard-") == 5


def test_an_interruption_ends_all_threads(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = corpus(blocks=40).write(tmp_path)

    def interrupted(descriptor: int, buffer: memoryview, offset: int) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(checksums, "read_some", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.verify()
    assert not [t for t in threading.enumerate() if t.name.startswith("checksum")]


def test_a_shard_is_compared_once_when_it_is_first_read(
    cache: Cache, compared: list[list[int]]
) -> None:
    opened = Cache.open(cache.folder, verify_shards=True)
    opened.read_rows(0, 0)
    opened.read_rows(0, 16)
    assert compared[-1:] == [[0]]
    opened.read_rows(3, 17)
    assert compared[-1:] == [[1]]
    rows = opened.read_rows(0, 40)
    assert compared[-1:] == [[2]]
    assert torch.equal(rows, cache.read_rows(0, 40))
    before = len(compared)
    opened.read_rows(0, 40)
    cache.read_rows(0, 40)
    assert len(compared) == before


def test_a_damaged_shard_is_refused_only_once_rows_are_read_from_it(cache: Cache) -> None:
    flip(shard(cache, 1))
    Cache.open(cache.folder).read_rows(0, 40)
    opened = Cache.open(cache.folder, verify_shards=True)
    opened.read_rows(0, 16)
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"the checksum does not match in shard-00001\.safetensors;"
        ):
            opened.read_rows(10, 40)


def test_the_loader_compares_each_shard_once_in_all_its_epochs_and_resumes_alike(
    cache: Cache, compared: list[list[int]]
) -> None:
    plain = ActivationLoader(cache, 3, seed=5)
    checking = ActivationLoader(Cache.open(cache.folder, verify_shards=True), 3, seed=5)
    for _ in range(3):
        assert all(map(torch.equal, plain, checking))
        assert checking.state_dict() == plain.state_dict()
    assert sorted(index for call in compared for index in call) == [0, 1, 2]

    running = iter(plain)
    for _ in range(4):
        next(running)
    resumed = ActivationLoader(Cache.open(cache.folder, verify_shards=True), 3, seed=5)
    resumed.load_state_dict(plain.state_dict())
    assert all(map(torch.equal, running, resumed))


def test_the_loader_hands_out_what_comes_before_a_damaged_shard(cache: Cache) -> None:
    flip(shard(cache, 2))
    loader = ActivationLoader(
        Cache.open(cache.folder, verify_shards=True), 2, shuffle=False, prefetch=1
    )
    served: list[torch.Tensor] = []
    with pytest.raises(InputError, match=r"does not match in shard-00002\.safetensors;"):
        served.extend(loader)
    assert torch.equal(torch.cat(served), cache.read_rows(0, 32))
    assert loader.state_dict()["rows_served"] == 32
