"""Key, shards, manifest, and a reader written from `docs/cache-format.md` alone."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from palinka.data.cache import Cache
from palinka.data.format import DTYPES, CacheKey, Layout, ShardShape, permutation
from palinka.errors import InputError

if TYPE_CHECKING:
    from conftest import Corpora


WORD = 2**64


def mix(word: int) -> int:
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def plain_permutation(length: int, *seeds: int) -> list[int]:
    state = 0
    for seed in seeds:
        state = mix(((state ^ (seed % WORD)) + 0x9E3779B97F4A7C15) % WORD)
    hashes = [mix((state + (i + 1) * 0x9E3779B97F4A7C15) % WORD) for i in range(length)]
    return sorted(range(length), key=lambda i: hashes[i])


@given(st.integers(0, 60), st.lists(st.integers(-(2**63), 2**64 - 1), max_size=3))
def test_permutation_equals_plain_transcription(length: int, seeds: list[int]) -> None:
    assert permutation(length, *seeds).tolist() == plain_permutation(length, *seeds)


def test_permutation_never_changes(repository: Path) -> None:
    # The first outputs of the published generator of splitmix64 for seed 0.
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
    assert mix(2 * 0x9E3779B97F4A7C15 % WORD) == 0x6E789E6AA1B965F4
    assert permutation(8, 1, 2).tolist() == [2, 7, 3, 1, 5, 6, 0, 4]
    page = (repository / "docs" / "cache-format.md").read_text()
    assert "with the seeds (1, 2) is\n2 7 3 1 5 6 0 4." in page


LAYOUT = Layout(width=3, dtype="float16", context_length=8, contexts_per_shard=2)


def test_digest_never_changes_and_everything_counts() -> None:
    # Caches that are on disk are found by it.
    key = CacheKey(LAYOUT, {"model": "mini", "rows": 5})
    assert key.digest == "1e2dc5ca5c45962c69b5199800d1abcbd0c39c0a32e75ef64e05b43dc7f15f8f"
    assert key.folder(Path("root")) == Path("root/1e2dc5ca5c45962c")
    one = CacheKey(LAYOUT, {"a": 1, "b": [1, {"c": None, "d": 0.5}]})
    other = CacheKey(LAYOUT, {"b": [1, {"d": 0.5, "c": None}], "a": 1})
    assert one.digest == other.digest
    changes = {"width": 4, "dtype": "float32", "context_length": 9, "contexts_per_shard": 3}
    changes |= {"skip": 1, "seed": 1}
    layouts = [LAYOUT, *(replace(LAYOUT, **{name: value}) for name, value in changes.items())]
    keys = [
        *(CacheKey(layout, {"a": 1}) for layout in layouts),
        *(CacheKey(LAYOUT, settings) for settings in ({"a": "1"}, {"a": 1.5}, {})),
    ]
    assert len({key.digest for key in keys}) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float64"}, "dtype is 'float64'; expected one of float16, bfloat16, float32"),
        ({"context_length": 0}, "context_length is 0; expected at least 1"),
        ({"skip": 8}, "context_length is 8; expected at least 9"),
    ],
)
def test_impossible_layouts_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(LAYOUT, **change)


shapes = st.builds(
    lambda width, dtype, context, skip, contexts, index: ShardShape(
        Layout(width, dtype, context, contexts, min(skip, context - 1)), index, contexts
    ),
    *(st.integers(1, 9), st.sampled_from(list(DTYPES)), st.integers(1, 9), st.integers(0, 3)),
    *(st.integers(1, 9), st.integers(0, 200_000)),
)


@given(shapes)
def test_the_safetensors_library_reads_the_header(
    tmp_path_factory: pytest.TempPathFactory, shape: ShardShape
) -> None:
    path = tmp_path_factory.getbasetemp() / "shard.safetensors"
    content = np.random.default_rng(0).bytes(shape.bytes - len(shape.header))
    path.write_bytes(shape.header + content)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "format": "palinka-activations",
            "version": "1",
            "shard": str(shape.index),
        }
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    table, rows = (shape.contexts, shape.layout.context_length), shape.rows
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        **dict.fromkeys(("tokens", "documents", "positions"), table),
        "index": (rows,),
        "activations": (rows, shape.layout.width),
    }
    assert tensors["activations"].dtype == shape.layout.torch_dtype
    assert shape.activations_start % 64 == 0
    ordered = [tensors[n] for n in ("tokens", "documents", "positions", "index", "activations")]
    assert b"".join(t.view(torch.uint8).numpy().tobytes() for t in ordered) == content
    assert len(content) - tensors["activations"].nbytes == shape.activations_start - len(
        shape.header
    )


def test_header_never_changes() -> None:
    shape = ShardShape(Layout(2, "bfloat16", 4, 3, skip=1), index=7, contexts=2)
    text = (
        b'{"__metadata__":{"format":"palinka-activations","version":"1","shard":"7"},'
        b'"tokens":{"dtype":"I32","shape":[2,4],"data_offsets":[0,32]},'
        b'"documents":{"dtype":"I32","shape":[2,4],"data_offsets":[32,64]},'
        b'"positions":{"dtype":"I32","shape":[2,4],"data_offsets":[64,96]},'
        b'"index":{"dtype":"I32","shape":[6],"data_offsets":[96,120]},'
        b'"activations":{"dtype":"BF16","shape":[6,2],"data_offsets":[120,144]}}'
    )
    length = len(shape.header) - 8
    assert shape.header == length.to_bytes(8, "little") + text.ljust(length)
    assert 0 <= length - len(text) < 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((lambda m, v=v: m.update(version=v), "reads version 1; use") for v in (2, None)),
        (lambda m: m.update(format="zarr"), "its format is 'zarr', expected 'palinka-activations'"),
        (lambda m: m.pop("settings"), "'settings' is missing"),
        (lambda m: m["layout"].pop("seed"), "'layout' does not fit"),
        (lambda m: m["layout"].update(seed=1), "its key is not that of its settings"),
        (lambda m: m["settings"].update(contexts=6), "its key is not that of its settings"),
        (lambda m: m.update(layout=[]), "damaged"),
        (lambda m: m["shards"].pop(), "'rows' does not fit"),
        (lambda m: m["shards"].reverse(), "'shards' does not fit"),
        (lambda m: m["shards"][1].update(file="../../etc/passwd"), "'shards' does not fit"),
        (lambda m: m["shards"][1].update(bytes=1), "'shards' does not fit"),
        (lambda m: m["shards"][1].update(blocks=1), "'rows' does not fit"),
        (lambda m: m.update(rows=41), "'rows' does not fit"),
        (lambda m: m["statistics"].update(rows=41), "those of other rows"),
        (lambda m: m["statistics"].pop("sum"), "'sum' is missing"),
    ],
)
def test_a_manifest_whose_members_do_not_fit_is_rejected(
    cache: Cache, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = cache.folder / "manifest.json"
    members = json.loads(path.read_bytes())
    change(members)
    path.write_text(json.dumps(members))
    with pytest.raises(InputError, match=message) as error:
        Cache.open(cache.folder)
    assert "\n" not in str(error.value)


def test_a_manifest_with_a_checksum_of_itself_is_read(cache: Cache) -> None:
    """As they were written before: its last member is the SHA-256 of all bytes before it."""
    path = cache.folder / "manifest.json"
    body = path.read_bytes().removesuffix(b"\n}\n") + b",\n"
    path.write_bytes(body + f'"checksum": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode())
    Cache.open(cache.folder).verify()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_reader_written_from_the_page_finds_every_row(
    corpus: "Corpora", tmp_path: Path, dtype: str
) -> None:
    small = corpus(dtype=dtype, skip=1, seed=-3)
    folder = small.write(tmp_path).folder
    manifest = json.loads((folder / "manifest.json").read_bytes())
    described = {"version": 1, "layout": manifest["layout"], "settings": manifest["settings"]}
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    key = hashlib.sha256(text.encode()).hexdigest()
    assert (manifest["key"], folder.name) == (key, key[:16])
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        *(shard["file"] for shard in manifest["shards"]),
    }
    layout = manifest["layout"]
    length, skip, width = layout["context_length"], layout["skip"], layout["width"]
    tokens_before = 0
    for number, shard in enumerate(manifest["shards"]):
        data = (folder / shard["file"]).read_bytes()
        assert len(data) == shard["bytes"]
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        start = 8 + int.from_bytes(data[:8], "little")
        blocks, rows = shard["blocks"], shard["blocks"] * (length - skip)
        assert rows == shard["rows"]
        tables = np.frombuffer(data, "<i4", 3 * blocks * length + rows, start)
        tokens, index = tables[: blocks * length], tables[3 * blocks * length :]
        first = start + 4 * (3 * blocks * length + rows)
        assert first % 64 == 0
        activations = np.frombuffer(data, dtype, offset=first).reshape(rows, width)
        for place, row in enumerate(permutation(rows, layout["seed"], number)):
            expected = (row // (length - skip)) * length + skip + row % (length - skip)
            assert index[place] == expected
            assert tokens[expected] == tokens_before + expected == activations[place, 0]
        tokens_before += blocks * length


def test_an_unfinished_cache_says_what_the_page_says(corpus: "Corpora", tmp_path: Path) -> None:
    small = corpus()
    writer = small.begin(tmp_path, [1])
    names = ["harvest.json", "shard-00001.json", "shard-00001.safetensors"]
    assert sorted(path.name for path in writer.folder.iterdir()) == names
    described = json.loads((writer.folder / "harvest.json").read_bytes())
    folder = small.write(tmp_path).folder
    assert not (folder / "harvest.json").exists()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert described == {
        "format": "palinka-activations-harvest",
        "version": 1,
        **{name: manifest[name] for name in ("key", "layout", "settings")},
    }
