"""Key, shards, manifest, and a reader written from `docs/cache-format.md` alone."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from palinka.data.cache import Cache
from palinka.data.format import (
    DTYPES,
    CacheKey,
    Layout,
    Manifest,
    RowStatistics,
    ShardShape,
    is_cache_file,
    is_stale,
    permutation,
    shard_name,
    write_json,
)
from palinka.data.writer import CacheWriter
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


def test_mixing_is_splitmix64() -> None:
    # The first outputs of the published generator for seed 0.
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
    assert mix(2 * 0x9E3779B97F4A7C15 % WORD) == 0x6E789E6AA1B965F4


def test_permutation_never_changes() -> None:
    assert permutation(8, 1, 2).tolist() == [2, 7, 3, 1, 5, 6, 0, 4]


def test_seeds_count_each_for_itself() -> None:
    orders = [permutation(50, *seeds).tolist() for seeds in ((0, 1), (1, 0), (0, 0), (1, 1), (0,))]
    assert len({tuple(order) for order in orders}) == 5


def test_places_are_uniform() -> None:
    orders = np.stack([permutation(10, seed) for seed in range(5000)])
    counts = np.stack([np.bincount(orders[:, place], minlength=10) for place in range(10)])
    # Sum of squared deviations over expectation: chi-squared with 81 degrees of freedom.
    assert ((counts - 500) ** 2 / 500).sum() < 81 + 4 * np.sqrt(2 * 81)


LAYOUT = Layout(width=3, dtype="float16", context_length=8, contexts_per_shard=2)


def test_digest_does_not_depend_on_the_order_of_settings() -> None:
    one = CacheKey(LAYOUT, {"a": 1, "b": [1, {"c": None, "d": 0.5}]})
    other = CacheKey(LAYOUT, {"b": [1, {"d": 0.5, "c": None}], "a": 1})
    assert one.digest == other.digest


def test_digest_never_changes() -> None:
    # Caches that are on disk are found by it.
    assert CacheKey(LAYOUT, {"model": "mini", "rows": 5}).digest == (
        "1e2dc5ca5c45962c69b5199800d1abcbd0c39c0a32e75ef64e05b43dc7f15f8f"
    )


def test_everything_counts() -> None:
    keys = [
        CacheKey(LAYOUT, {"a": 1}),
        CacheKey(LAYOUT, {"a": "1"}),
        CacheKey(LAYOUT, {"a": 1.5}),
        CacheKey(LAYOUT, {}),
        *(
            CacheKey(Layout(**{**LAYOUT.__dict__, **change}), {"a": 1})
            for change in (
                {"width": 4},
                {"dtype": "float32"},
                {"context_length": 9},
                {"contexts_per_shard": 3},
                {"skip": 1},
                {"seed": 1},
            )
        ),
    ]
    assert len({key.digest for key in keys}) == len(keys)


def test_folder_is_named_by_the_digest() -> None:
    key = CacheKey(LAYOUT, {})
    assert key.folder(Path("root")) == Path("root") / key.digest[:16]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float64"}, "'float64': use one of float16, bfloat16, float32"),
        ({"width": 0}, "width is 0: it must be at least 1"),
        ({"context_length": 0}, "context_length is 0"),
        ({"contexts_per_shard": 0}, "contexts_per_shard is 0"),
        ({"skip": 8}, r"skip is 8: it must be from 0 to context_length - 1 \(7\)"),
        ({"skip": -1}, "skip is -1"),
        ({"contexts_per_shard": 2**28}, "here 268435455 contexts"),
    ],
)
def test_impossible_layouts_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Layout(**{**LAYOUT.__dict__, **change})


def test_merged_parts_equal_the_whole() -> None:
    rows = np.random.default_rng(0).normal(3, 2, (101, 4))
    merged = RowStatistics.merged(
        (RowStatistics.of(part) for part in np.array_split(rows, 7)), width=4
    )
    norms = np.linalg.norm(rows, axis=1)
    assert merged.rows == 101
    np.testing.assert_allclose(merged.mean, rows.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(merged.mean_norm, norms.mean(), rtol=1e-13)
    np.testing.assert_allclose(merged.mean_squared_norm, (norms**2).mean(), rtol=1e-13)
    np.testing.assert_allclose(merged.total_variance, rows.var(axis=0).sum(), rtol=1e-12)


def test_constant_rows_have_no_variance() -> None:
    assert RowStatistics.of(np.full((3, 2), 0.1)).total_variance < 1e-16


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
        activations = file.get_tensor("activations")
        tokens, positions = file.get_tensor("tokens"), file.get_tensor("positions")
        index = file.get_tensor("index")
    context = shape.layout.context_length
    assert activations.shape == (shape.rows, shape.layout.width)
    assert activations.dtype == shape.layout.torch_dtype
    assert tokens.shape == positions.shape == (shape.contexts, context)
    assert index.shape == (shape.rows,)
    file_bytes = path.read_bytes()
    assert shape.activations_start % 64 == 0
    for tensor, start in (
        (activations, shape.activations_start),
        (tokens, shape.table_start("tokens")),
        (positions, shape.table_start("positions")),
        (index, shape.table_start("index")),
    ):
        expected = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        assert file_bytes[start : start + len(expected)] == expected


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


def test_places_leave_out_skipped_positions() -> None:
    shape = ShardShape(Layout(2, "float16", 4, 2, skip=1), index=0, contexts=2)
    assert shape.places(np.arange(6)).tolist() == [1, 2, 3, 5, 6, 7]
    assert sorted(shape.order().tolist()) == list(range(6))


def test_each_shard_has_its_own_order() -> None:
    layout = Layout(2, "float16", 16, 4, seed=1)
    orders = {tuple(ShardShape(layout, index, 4).order().tolist()) for index in range(4)}
    assert len(orders) == 4


def test_file_names() -> None:
    assert shard_name(0) == "shard-00000.safetensors"
    assert shard_name(123456) == "shard-123456.safetensors"


def test_a_manifest_that_is_written_is_read(cache: Cache, corpus: "Corpora") -> None:
    manifest = Manifest.read(cache.folder)
    assert manifest.key.digest == corpus().key.digest
    assert [shape.contexts for shape in manifest.shapes] == [2, 2, 1]
    assert manifest.statistics.rows == 40
    before = (cache.folder / "manifest.json").read_bytes()
    manifest.write(cache.folder)
    assert (cache.folder / "manifest.json").read_bytes() == before


def test_the_manifest_is_json_that_any_tool_can_read(cache: Cache) -> None:
    members = json.loads((cache.folder / "manifest.json").read_text())
    assert list(members) == [
        "format",
        "version",
        "key",
        "layout",
        "settings",
        "rows",
        "shards",
        "statistics",
    ]
    first = members["shards"][0]
    size = (cache.folder / first["file"]).stat().st_size
    assert (first["file"], first["rows"], first["bytes"]) == ("shard-00000.safetensors", 16, size)


def changed(cache: Cache, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the manifest with a change."""
    path = cache.folder / "manifest.json"
    members = json.loads(path.read_bytes())
    change(members)
    write_json(path, members)


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_other_versions_are_named(cache: Cache, version: object) -> None:
    changed(cache, lambda members: members.update(version=version))
    with pytest.raises(InputError, match=r"this palinka reads version 1; use the palinka that"):
        Cache.open(cache.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="zarr"), "its format is 'zarr', expected 'palinka-activations'"),
        (lambda m: m.pop("settings"), "'settings' is missing"),
        (lambda m: m["layout"].pop("seed"), "'layout' does not fit"),
        (lambda m: m["layout"].update(more=1), "'more'"),
        (lambda m: m["layout"].update(width=0), "width is 0"),
        (lambda m: m["layout"].update(seed=1), "its key is not that of its settings"),
        (lambda m: m["settings"].update(contexts=6), "its key is not that of its settings"),
        (lambda m: m.update(layout=[]), "damaged"),
        (lambda m: m.update(shards=[]), "'rows' does not fit"),
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


def test_settings_may_be_any_json(tmp_path: Path, corpus: "Corpora") -> None:
    small = corpus()
    key = CacheKey(small.layout, {"a": [1.5, None, "ü\n"], "b": {"c": True}, "d": (1, 2)})
    writer = CacheWriter(tmp_path, key)
    with writer.claim(0) as shard:
        assert shard is not None
        shard.write(*small.shard(0))
    assert writer.finish(1).key.digest == key.digest


@pytest.mark.parametrize("length", [0, 1, 50, -3])
def test_a_torn_manifest_is_noticed(cache: Cache, length: int) -> None:
    path = cache.folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"manifest\.json: damaged"):
        Manifest.read(cache.folder)


def test_a_manifest_with_a_checksum_of_itself_is_read(cache: Cache) -> None:
    """As they were written before: its last member is the SHA-256 of all bytes before it."""
    path = cache.folder / "manifest.json"
    body = path.read_bytes().removesuffix(b"\n}\n") + b",\n"
    path.write_bytes(body + f'"checksum": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode())
    Cache.open(cache.folder).verify()


@pytest.mark.parametrize(
    ("name", "belongs", "stale"),
    [
        ("manifest.json", True, False),
        ("shard-00000.safetensors", True, False),
        ("shard-123456.safetensors", True, False),
        ("harvest.json", True, True),
        ("harvest.lock", True, True),
        ("shard-00000.json", True, True),
        ("shard-00000.lock", True, True),
        ("shard-00000.safetensors.tmp", True, True),
        ("manifest.json.tmp", True, True),
        ("shard-0.safetensors", False, False),
        ("shard-00000.safetensors.bak", False, False),
        ("notes.txt", False, False),
        ("notes.tmp", False, False),
    ],
)
def test_files_of_a_cache_are_known_by_their_names(name: str, belongs: bool, stale: bool) -> None:
    assert (is_cache_file(name), is_stale(name)) == (belongs, stale)


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
    writer = CacheWriter(tmp_path, small.key)
    with writer.claim(1) as shard:
        assert shard is not None
        shard.write(*small.shard(1))
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


def test_the_page_gives_the_example_that_the_code_gives(repository: Path) -> None:
    page = (repository / "docs" / "cache-format.md").read_text()
    example = " ".join(str(number) for number in permutation(8, 1, 2))
    assert f"with the seeds (1, 2) is\n{example}." in page
