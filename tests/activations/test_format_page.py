"""The normative page against the code: a reader written from the page alone."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from palinka.data.format import permutation
from palinka.data.writer import CacheWriter

if TYPE_CHECKING:
    from conftest import SmallCorpus


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_reader_written_from_the_page_finds_every_row(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path, dtype: str
) -> None:
    small = corpus(dtype=dtype, skip=1, seed=-3)
    folder = small.write(tmp_path).folder
    content = (folder / "manifest.json").read_bytes()
    manifest = json.loads(content)
    seal = f'"checksum": "{hashlib.sha256(content[:-81]).hexdigest()}"\n}}\n'
    assert content[-81:] == seal.encode()
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


def test_an_unfinished_cache_says_what_the_page_says(
    corpus: "Callable[..., SmallCorpus]", tmp_path: Path
) -> None:
    small = corpus()
    writer = CacheWriter(tmp_path, small.key)
    with writer.claim(1) as shard:
        assert shard is not None
        shard.write(*small.shard(1))
    names = ["harvest.json", "shard-00001.json", "shard-00001.safetensors"]
    assert sorted(path.name for path in writer.folder.iterdir()) == names
    content = (writer.folder / "harvest.json").read_bytes()
    described = json.loads(content)
    assert described.pop("checksum") == hashlib.sha256(content[:-81]).hexdigest()
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
