import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from palinka.data import cache as reading
from palinka.data.cache import Cache
from palinka.data.format import ShardShape
from palinka.errors import InputError

if TYPE_CHECKING:
    from conftest import SmallCorpus


def shard(cache: Cache, index: int) -> Path:
    return cache.folder / f"shard-{index:05d}.safetensors"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("skip", [0, 1])
def test_every_row_is_there_once_with_its_context(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path, dtype: str, skip: int
) -> None:
    small = corpus(dtype=dtype, skip=skip)
    cache = small.write(tmp_path)
    rows = cache.read_rows(0, cache.rows)
    assert (cache.rows, cache.width, cache.blocks, cache.shards) == (5 * (8 - skip), 3, 5, 3)
    assert rows.dtype == cache.dtype == small.layout.torch_dtype
    seen = []
    for number in range(cache.rows):
        context = cache.context(number)
        token = int(context.tokens[context.offset])
        seen.append(token)
        # Token ids are numbered through, so that each says its block, offset and row.
        block, offset = divmod(token, 8)
        assert context.tokens.tolist() == list(range(8 * block, 8 * block + 8))
        assert (context.offset, context.document, context.position) == (
            offset,
            token // 7,
            token % 7,
        )
        expected = small.activations[block * (8 - skip) + offset - skip]
        assert torch.equal(rows[number], expected)
    assert sorted(seen) == [token for token in range(40) if token % 8 >= skip]


@pytest.mark.parametrize("skip", [0, 1])
def test_contexts_come_whole_and_in_the_order_of_the_text(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path, skip: int
) -> None:
    blocks = list(corpus(skip=skip).write(tmp_path).contexts())
    tokens = np.arange(40).reshape(5, 8)
    assert [block.tokens.tolist() for block in blocks] == tokens.tolist()
    assert [block.documents.tolist() for block in blocks] == (tokens // 7).tolist()
    assert [block.positions.tolist() for block in blocks] == (tokens % 7).tolist()
    assert blocks[0].tokens.dtype == np.int64


def test_rows_are_shuffled_by_token_within_shards(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    cache = corpus(blocks=64, blocks_per_shard=32).write(tmp_path)
    tokens = cache.read_rows(0, cache.rows)[:, 0]
    assert tokens[:256].max() < 256 <= tokens[256:].min()
    blocks = (tokens // 8).int()
    # In any order, 255 neighbors of 31 blocks; in the order of the text, 224 of 255 are alike.
    assert (blocks[1:256] == blocks[:255]).sum() < 30


def test_rows_can_be_read_in_any_pieces(cache: Cache) -> None:
    rows = cache.read_rows(0, 40)
    assert torch.equal(cache.read_rows(14, 34), rows[14:34])
    assert cache.read_rows(7, 7).shape == (0, 3)
    numbers = np.array([39, 0, 15, 16, 17, 3, 3])
    assert torch.equal(cache.read(numbers), rows[torch.from_numpy(numbers)])
    assert cache.read(np.array([], np.int64)).shape == (0, 3)


@pytest.mark.parametrize("bounds", [(-1, 3), (0, 41)])
def test_rows_that_do_not_exist_are_refused(cache: Cache, bounds: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="which has rows 0 to 39"):
        cache.read_rows(*bounds)
    for row in (-1, 40):
        with pytest.raises(InputError, match=f"row {row} asked of .* rows 0 to 39"):
            cache.context(row)


def test_few_files_are_open_at_once(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_MOST_OPEN", 2)
    before = len(list(Path("/dev/fd").iterdir()))
    reader = cache.reader()
    out = torch.empty(4, 3)
    for _ in range(3):
        for first in (0, 14, 32, 38):
            reader.read_into(out, np.array([[first, min(40, first + 4)]]))
            if first == 0:
                assert torch.equal(out, cache.read_rows(0, 4))
    assert len(list(Path("/dev/fd").iterdir())) <= before + 2
    reader.close()
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_runs_are_short_where_contexts_are_long(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    many = corpus(blocks=2048, blocks_per_shard=2048, width=1, context_length=8).write(tmp_path)
    # 16,384 rows: 1,024 runs of 16, and 1 + 0.1 * 16383 / 7 = 235 would be mixed well enough.
    assert many.run_rows == 16
    long = corpus(blocks=32, blocks_per_shard=32, width=1, context_length=512).write(tmp_path)
    # 1 + 0.1 * 16383 / 511 = 4.2
    assert long.run_rows == 4
    assert corpus().write(tmp_path).run_rows == 1


def test_a_folder_without_manifest_is_no_cache(cache: Cache) -> None:
    assert Cache.exists(cache.folder)
    (cache.folder / "manifest.json").unlink()
    assert not Cache.exists(cache.folder)
    with pytest.raises(InputError, match=r"no finished cache \(no manifest.json\); harvest it"):
        Cache.open(cache.folder)


def test_another_key_is_refused(cache: Cache, corpus: "Callable[..., SmallCorpus]") -> None:
    assert Cache.open(cache.folder, corpus().key).identity == corpus().key.digest
    with pytest.raises(InputError, match="a cache of other settings"):
        Cache.open(cache.folder, corpus(seed=1).key)


def test_a_cache_may_be_moved(cache: Cache, tmp_path: Path) -> None:
    moved = cache.folder.rename(tmp_path / "elsewhere")
    Cache.open(moved).verify()


def test_missing_shards_are_all_named(cache: Cache) -> None:
    shard(cache, 0).unlink()
    shard(cache, 2).unlink()
    with pytest.raises(
        InputError, match=r"shard-00000\.safetensors: not found.*shard-00002\.safetensors: not"
    ):
        Cache.open(cache.folder)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_size_is_named(cache: Cache, change: int) -> None:
    size = shard(cache, 1).stat().st_size
    os.truncate(shard(cache, 1), size + change)
    with pytest.raises(
        InputError, match=rf"shard-00001\.safetensors: {size + change} bytes, expected {size}"
    ):
        Cache.open(cache.folder)


def test_shards_that_are_no_ordinary_files_are_refused(cache: Cache, tmp_path: Path) -> None:
    elsewhere = shard(cache, 1).rename(tmp_path / "elsewhere")
    shard(cache, 1).symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"shard-00001\.safetensors: a symbolic link"):
        Cache.open(cache.folder)
    shard(cache, 1).unlink()
    os.mkfifo(shard(cache, 1))
    with pytest.raises(InputError, match=r"shard-00001\.safetensors: not an ordinary file"):
        Cache.open(cache.folder)


def test_shards_that_changed_places_are_noticed(cache: Cache, tmp_path: Path) -> None:
    shard(cache, 0).rename(tmp_path / "zero")
    shard(cache, 1).rename(shard(cache, 0))
    (tmp_path / "zero").rename(shard(cache, 1))
    with pytest.raises(InputError, match=r"shard-00000\.safetensors: its header is damaged"):
        Cache.open(cache.folder)


def test_verify_names_every_damaged_shard(cache: Cache) -> None:
    cache.verify()
    for index in (0, 2):
        with shard(cache, index).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
    opened = Cache.open(cache.folder)
    with pytest.raises(
        InputError, match=r"does not match in shard-00000\.safetensors, shard-00002\.safetensors;"
    ):
        opened.verify()


def test_every_single_bit_flip_is_noticed_and_named(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small = corpus(blocks=1, context_length=2, width=1, dtype="float16")
    cache = small.write(tmp_path)
    noticed = 0
    for path in sorted(cache.folder.iterdir()):
        content = path.read_bytes()
        for place, value in enumerate(content):
            for bit in range(8):
                with path.open("r+b", buffering=0) as file:
                    file.seek(place)
                    file.write(bytes([value ^ 1 << bit]))
                try:
                    Cache.open(cache.folder).verify()
                except InputError as error:
                    noticed += path.name in str(error)
            with path.open("r+b", buffering=0) as file:
                file.seek(place)
                file.write(bytes([value]))
    assert noticed == 8 * sum(path.stat().st_size for path in cache.folder.iterdir())
    Cache.open(cache.folder).verify()


def test_a_shard_that_vanishes_later_is_named(cache: Cache) -> None:
    shard(cache, 1).unlink()
    with pytest.raises(InputError, match=r"shard-00001\.safetensors: not found"):
        cache.read_rows(0, 40)
    with pytest.raises(InputError, match=r"shard-00001\.safetensors: not found"):
        cache.context(20)


def test_a_shard_that_is_cut_while_open_is_named(cache: Cache) -> None:
    reader = cache.reader()
    out = torch.empty(16, 3)
    reader.read_into(out[:1], np.array([[0, 1]]))
    os.truncate(shard(cache, 0), shard(cache, 0).stat().st_size - 1)
    with pytest.raises(InputError, match=r"shard-00000\.safetensors: ended early"):
        reader.read_into(out, np.array([[0, 16]]))
    reader.close()


def test_a_damaged_index_is_no_place(cache: Cache, corpus: "Callable[..., SmallCorpus]") -> None:
    start = ShardShape(corpus().layout, 0, 2).table_start("index")
    with shard(cache, 0).open("r+b") as file:
        file.seek(start)
        file.write(b"\xff\xff\xff\x7f")
    with pytest.raises(InputError, match="its index is damaged"):
        cache.context(0)
