import os
import shutil
from pathlib import Path

import pytest

from palinka.language_models.spec import Source, fingerprint


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders["gpt2"], tmp_path / "model")


def test_a_copy_elsewhere_is_the_same_model(folders: dict[str, Path], folder: Path) -> None:
    found = fingerprint(Source(folder), "float32")
    assert found == fingerprint(Source(folders["gpt2"]), "float32")
    assert set(found) == {"weights", "tokenizer", "dtype"}
    assert not any(str(folder.parent) in value for value in found.values())


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("model.safetensors", "weights"),
        ("config.json", "weights"),
        ("tokenizer.json", "tokenizer"),
        ("tokenizer_config.json", "tokenizer"),
    ],
)
def test_one_byte_more_is_another_model(folder: Path, file: str, changes: str) -> None:
    before = fingerprint(Source(folder), "float32")
    with (folder / file).open("ab") as stream:
        stream.write(b" ")
    after = fingerprint(Source(folder), "float32")
    assert {key for key in before if before[key] != after[key]} == {changes}


def test_a_byte_changed_in_place_is_another_model(folder: Path) -> None:
    file = folder / "model.safetensors"
    before = fingerprint(Source(folder), "float32")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert fingerprint(Source(folder), "float32") != before


def test_the_dtype_is_part_of_it(folder: Path) -> None:
    assert fingerprint(Source(folder), "float32") != fingerprint(Source(folder), "float16")


def test_a_gguf_file_is_identified_by_its_content(tmp_path: Path) -> None:
    for name, content in {"a.gguf": b"1", "b.gguf": b"1", "c.gguf": b"2"}.items():
        (tmp_path / name).write_bytes(content)
    a, b, c = (fingerprint(Source(tmp_path, gguf_file=f"{name}.gguf"), "float32") for name in "abc")
    assert a == b != c


def test_a_model_on_the_hub_is_identified_by_its_commit() -> None:
    found = fingerprint(Source("owner/model", "main", "abc123"), "float32")
    assert found["name"] == "owner/model"
    assert found["revision"] == "abc123"
    assert found == fingerprint(Source("owner/model", "v1", "abc123", offline=False), "float32")
    assert found != fingerprint(Source("owner/model", "main", "def456"), "float32")
    assert found != fingerprint(
        Source("owner/model", "main", "abc123", gguf_file="a.gguf"), "float32"
    )
