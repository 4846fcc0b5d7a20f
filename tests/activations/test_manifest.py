import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palinka.data.cache import Cache
from palinka.data.format import CacheKey, Manifest, read_sealed, sealed, write_sealed
from palinka.data.writer import CacheWriter
from palinka.errors import InputError

if TYPE_CHECKING:
    from conftest import SmallCorpus


def test_what_is_written_is_read(cache: Cache, corpus: "Callable[..., SmallCorpus]") -> None:
    manifest = Manifest.read(cache.folder)
    assert manifest.key.digest == corpus().key.digest
    assert [shape.blocks for shape in manifest.shapes] == [2, 2, 1]
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
        "checksum",
    ]
    first = members["shards"][0]
    size = (cache.folder / first["file"]).stat().st_size
    assert (first["file"], first["rows"], first["bytes"]) == ("shard-00000.safetensors", 16, size)


def changed(cache: Cache, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the manifest with a change and a checksum that fits."""
    members: dict[str, Any] = copy.deepcopy(read_sealed(cache.folder / "manifest.json"))
    change(members)
    write_sealed(cache.folder / "manifest.json", members)


@pytest.mark.parametrize("version", [2, 0, "1", 1.0, None, True])
def test_other_versions_are_named(cache: Cache, version: object) -> None:
    changed(cache, lambda members: members.update(version=version))
    with pytest.raises(InputError, match=r"this palinka reads version 1; use the palinka that"):
        Cache.open(cache.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="zarr"), "not a palinka-activations file"),
        (lambda m: m.pop("settings"), "'settings' is missing"),
        (lambda m: m["layout"].pop("seed"), "its layout has other members"),
        (lambda m: m["layout"].update(more=1), "its layout has other members"),
        (lambda m: m["layout"].update(width="3"), "its width is '3'"),
        (lambda m: m["layout"].update(width=True), "its width is True"),
        (lambda m: m["layout"].update(width=0), "width is 0"),
        (lambda m: m["layout"].update(seed=1), "its key is not that of its settings"),
        (lambda m: m["settings"].update(blocks=6), "its key is not that of its settings"),
        (lambda m: m.update(layout=[]), "is no object"),
        (lambda m: m.update(shards={}), "is no list"),
        (lambda m: m.update(shards=[]), "its rows are not those of its shards"),
        (lambda m: m["shards"].pop(), "its rows are not those of its shards"),
        (lambda m: m["shards"].reverse(), "its entry of shard 0"),
        (lambda m: m["shards"][1].update(file="../../etc/passwd"), "its entry of shard 1"),
        (lambda m: m["shards"][1].update(file="/etc/passwd"), "its entry of shard 1"),
        (lambda m: m["shards"][1].update(bytes=1), "its entry of shard 1"),
        (lambda m: m["shards"][1].update(blocks=0), "0 is no count"),
        (lambda m: m["shards"][1].update(blocks=10**400), "is no count"),
        (lambda m: m["shards"][1].update(sha256="A" * 64), "is no SHA-256 checksum"),
        (lambda m: m["shards"][1].update(sha256=5), "is no SHA-256 checksum"),
        (lambda m: m.update(rows=41), "its rows are not those of its shards"),
        (lambda m: m["statistics"].update(rows=41), "its rows are not those of its shards"),
        (lambda m: m["statistics"].update(rows=None), "its number of rows is no integer"),
        (lambda m: m["statistics"]["sum"].pop(), "has 2 numbers, not 3"),
        (lambda m: m["statistics"].update(sum_of_norms="1"), "is no finite number"),
        (lambda m: m["statistics"].update(sum_of_norms=10**400), "manifest.json: not as it"),
    ],
)
def test_a_manifest_that_is_not_as_it_should_be_is_refused(
    cache: Cache, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    changed(cache, change)
    with pytest.raises(InputError, match=message) as error:
        Cache.open(cache.folder)
    assert "\n" not in str(error.value)


def forged(members: dict[str, Any]) -> bytes:
    """Sealed like a manifest, but by somebody who also writes what is no JSON."""
    body = json.dumps(members, indent=0)[:-2].encode() + b",\n"
    return body + f'"checksum": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.data())
def test_any_value_anywhere_is_an_error_line_or_harmless(cache: Cache, data: st.DataObject) -> None:
    original = read_sealed(cache.folder / "manifest.json")
    (cache.folder / "manifest.json").write_bytes(forged(original))
    Manifest.read(cache.folder)  # the seal of a forger is as good
    members: Any = copy.deepcopy(original)
    place = members
    while True:
        name = data.draw(
            st.sampled_from(list(place) if isinstance(place, dict) else range(len(place)))
        )
        if not (isinstance(place[name], dict | list) and place[name] and data.draw(st.booleans())):
            break
        place = place[name]
    place[name] = data.draw(values)
    (cache.folder / "manifest.json").write_bytes(forged(members))
    try:
        Manifest.read(cache.folder)
    except InputError as error:
        message = str(error)
    else:
        message = str(cache.folder)
    (cache.folder / "manifest.json").write_bytes(sealed(original))
    assert message.startswith(str(cache.folder))


def test_settings_may_be_any_json(tmp_path: Path, corpus: "Callable[..., SmallCorpus]") -> None:
    small = corpus()
    key = CacheKey(small.layout, {"a": [1.5, None, "ü\n"], "b": {"c": True}, "d": (1, 2)})
    writer = CacheWriter(tmp_path, key)
    with writer.claim(0) as shard:
        assert shard is not None
        shard.write(*small.shard(0))
    assert writer.finish(1).key.digest == key.digest
