import os
import random
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palinka.data import ActivationLoader, Cache
from palinka.data import cache as reading
from palinka.data.cache import default_cache_dir, read_exactly
from palinka.errors import InputError

if TYPE_CHECKING:
    from conftest import Corpora


def shard(cache: Cache, index: int) -> Path:
    return cache.folder / f"shard-{index:05d}.safetensors"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("skip", [0, 1])
def test_every_row_is_there_once_with_its_context(
    corpus: "Corpora", tmp_path: Path, dtype: str, skip: int
) -> None:
    small = corpus(dtype=dtype, skip=skip)
    cache = small.write(tmp_path)
    rows = cache.read_rows(0, cache.rows)
    assert (cache.rows, cache.width, len(cache.shapes)) == (5 * (8 - skip), 3, 3)
    assert rows.dtype == cache.dtype == small.layout.torch_dtype
    seen = []
    for number in range(cache.rows):
        context = cache.context(number)
        token = int(context.tokens[context.offset])
        seen.append(token)
        # Token ids are numbered through, so that each says its context, offset and row.
        place, offset = divmod(token, 8)
        assert context.tokens.tolist() == list(range(8 * place, 8 * place + 8))
        found = (context.offset, context.document, context.position)
        assert found == (offset, token // 7, token % 7)
        assert torch.equal(rows[number], small.activations[place * (8 - skip) + offset - skip])
    assert sorted(seen) == [token for token in range(40) if token % 8 >= skip]
    exact = small.activations.double().numpy()
    norms, found = np.linalg.norm(exact, axis=1), cache.statistics
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.sum_of_norms, norms.sum(), rtol=1e-12)
    np.testing.assert_allclose(found.sum_of_squared_norms, (norms**2).sum(), rtol=1e-12)
    contexts = list(cache.contexts())
    for name, table in zip(("tokens", "documents", "positions"), small.tables, strict=True):
        assert [getattr(one, name).tolist() for one in contexts] == table.tolist()
    assert contexts[0].tokens.dtype == np.int64


def test_rows_are_shuffled_by_token_within_shards(corpus: "Corpora", tmp_path: Path) -> None:
    cache = corpus(contexts=64, contexts_per_shard=32).write(tmp_path)
    tokens = cache.read_rows(0, cache.rows)[:, 0]
    assert tokens[:256].max() < 256 <= tokens[256:].min()
    contexts = (tokens // 8).int()
    # In any order, 255 neighbors of 31 contexts; in the order of the text, 224 of 255 are alike.
    assert (contexts[1:256] == contexts[:255]).sum() < 30


def test_rows_can_be_read_in_any_pieces_and_no_others(cache: Cache) -> None:
    rows = cache.read_rows(0, 40)
    assert torch.equal(cache.read_rows(14, 34), rows[14:34])
    assert cache.read_rows(7, 7).shape == (0, 3)
    for row in (-1, 40):
        with pytest.raises(InputError, match=f"row {row} is out of range; expected 0 to 39"):
            cache.context(row)


def test_few_files_are_open_at_once(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_MAX_OPEN", 2)
    before = len(list(Path("/dev/fd").iterdir()))
    reader = cache.reader()
    out = torch.empty(4, 3)
    for _ in range(3):
        for first in (0, 14, 32, 36):
            reader.read_into(out, np.array([[first, first + 4]]))
            assert torch.equal(out, cache.read_rows(first, first + 4))
    assert len(list(Path("/dev/fd").iterdir())) <= before + 2
    reader.close()
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_runs_are_short_where_contexts_are_long(corpus: "Corpora", tmp_path: Path) -> None:
    many = corpus(contexts=2048, contexts_per_shard=2048, width=1, context_length=8).write(tmp_path)
    # 16,384 rows: 1,024 runs of 16, and 1 + 0.1 * 16383 / 7 = 235 would be mixed well enough.
    assert many.run_rows == 16
    long = corpus(contexts=32, contexts_per_shard=32, width=1, context_length=512).write(tmp_path)
    # 1 + 0.1 * 16383 / 511 = 4.2
    assert long.run_rows == 4
    assert corpus().write(tmp_path).run_rows == 1


def test_a_folder_without_manifest_or_with_another_key_is_rejected(
    cache: Cache, corpus: "Corpora", tmp_path: Path
) -> None:
    assert Cache.open(cache.folder, corpus().key).identity == corpus().key.digest
    with pytest.raises(InputError, match="a cache of other settings"):
        Cache.open(cache.folder, corpus(seed=1).key)
    moved = cache.folder.rename(tmp_path / "elsewhere")
    Cache.open(moved).verify()
    assert Cache.exists(moved)
    (moved / "manifest.json").unlink()
    assert not Cache.exists(moved)
    with pytest.raises(InputError, match=r"no finished cache \(no manifest.json\); harvest it"):
        Cache.open(moved)


def test_shards_that_are_missing_cut_or_in_another_place_are_all_named(
    cache: Cache, tmp_path: Path
) -> None:
    size = shard(cache, 1).stat().st_size
    shard(cache, 0).unlink()
    for change in (-1, 1):
        os.truncate(shard(cache, 1), size + change)
        with pytest.raises(
            InputError, match=rf"00000\.saf\w+: not found.*00001\.saf\w+: {size + change} bytes, ex"
        ):
            Cache.open(cache.folder)
    os.truncate(shard(cache, 1), size)
    shard(cache, 1).rename(shard(cache, 0))
    with pytest.raises(InputError, match=r"shard-00000\.safetensors: damaged header"):
        Cache.open(cache.folder)


def flip(path: Path, place: int = -1, bit: int = 0) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_a_bit_flip_in_every_byte_of_a_shard_is_noticed(corpus: "Corpora", tmp_path: Path) -> None:
    cache = corpus(contexts=1, context_length=2, width=1, dtype="float16").write(tmp_path)
    path = shard(cache, 0)
    for place in range(path.stat().st_size):
        flip(path, place, bit=place % 8)
        with pytest.raises(InputError, match=path.name):
            Cache.open(cache.folder).verify()
        flip(path, place, bit=place % 8)
    Cache.open(cache.folder).verify()


@pytest.mark.parametrize("threads", [1, 3])
def test_every_kind_of_damage_is_named_however_many_threads_there_are(
    corpus: "Corpora", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    cache = corpus(contexts=40).write(tmp_path)
    monkeypatch.setattr(reading, "_MAX_THREADS", threads)
    cache.verify()
    for index in (17, 3, 9):
        flip(shard(cache, index), -random.Random(index).randrange(1, 300))
    shard(cache, 12).unlink()
    shard(cache, 5).write_bytes(b"short")
    with pytest.raises(InputError) as error:
        cache.verify()
    message = str(error.value)
    assert "\n" not in message
    for index in (3, 9, 17):
        assert f"{shard(cache, index)}: the checksum does not match; remove" in message
    assert f"{shard(cache, 12)}: not found" in message
    assert f"{shard(cache, 5)}: 5 bytes, expected" in message
    assert message.count("shard-") == 5


def test_a_shard_that_vanishes_or_is_cut_later_is_named(cache: Cache) -> None:
    reader = cache.reader()
    out = torch.empty(16, 3)
    reader.read_into(out[:1], np.array([[0, 1]]))
    os.truncate(shard(cache, 0), shard(cache, 0).stat().st_size - 1)
    with pytest.raises(InputError, match=r"shard-00000\.safetensors: ended early"):
        reader.read_into(out, np.array([[0, 16]]))
    reader.close()
    shard(cache, 1).unlink()
    for read in (lambda: cache.read_rows(16, 40), lambda: cache.context(20)):
        with pytest.raises(InputError, match=r"shard-00001\.safetensors: not found"):
            read()


def test_a_shard_is_compared_once_when_it_is_first_read(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[list[int]] = []
    verify = Cache.verify
    monkeypatch.setattr(Cache, "verify", lambda c, s: verify(c, compared.append(list(s)) or s))
    opened = Cache.open(cache.folder, verify_shards=True)
    for start, stop in ((0, 0), (0, 16), (3, 17), (0, 40), (0, 40)):
        assert torch.equal(opened.read_rows(start, stop), cache.read_rows(start, stop))
    assert compared == [[0], [1], [2]]


def test_a_damaged_shard_is_rejected_only_once_rows_are_read_from_it(cache: Cache) -> None:
    flip(shard(cache, 2))
    Cache.open(cache.folder).read_rows(0, 40)
    opened = Cache.open(cache.folder, verify_shards=True)
    opened.read_rows(0, 16)
    damage = r"shard-00002\.safetensors: the checksum does not match;"
    for _ in range(2):
        with pytest.raises(InputError, match=damage):
            opened.read_rows(10, 40)
    loader = ActivationLoader(opened, 2, shuffle=False)
    served: list[torch.Tensor] = []
    with pytest.raises(InputError, match=damage):
        served.extend(loader)
    assert torch.equal(torch.cat(served), cache.read_rows(0, 32))
    assert loader.state_dict()["samples_seen"] == 32


def test_the_environment_or_the_home_folder_says_where_caches_lie(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PALINKA_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("PALINKA_CACHE", "")
    assert default_cache_dir() == Path("/home/someone/.cache/palinka/activations")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert default_cache_dir() == Path("/scratch/palinka/activations")
    monkeypatch.delenv("PALINKA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path("/home/someone/.cache/palinka/activations")

    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(InputError, match="set PALINKA_CACHE"):
        default_cache_dir()


@pytest.fixture(scope="module")
def uneven(corpus: "Corpora", tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return corpus().write(tmp_path_factory.mktemp("caches"))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=10))
def test_any_runs_are_read_one_after_the_other(uneven: Cache, pairs: list[tuple[int, int]]) -> None:
    runs = np.sort(np.array(pairs, np.int64).reshape(-1, 2), axis=1)
    rows = uneven.read_rows(0, 40)
    expected = torch.cat([rows[:0], *(rows[first:stop] for first, stop in runs)])
    out = torch.empty_like(expected)
    with closing(uneven.reader()) as reader:
        reader.read_into(out, runs)
    assert torch.equal(out, expected)


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, to, at: preadv(fd, [to[0][:7]], at))
    target = bytearray(90)
    with path.open("rb", buffering=0) as file:
        read_exactly(file, memoryview(target), 10)
    assert target == bytes(range(10, 100))
