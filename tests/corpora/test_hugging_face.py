import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from palinka.data import HuggingFaceDataset
from palinka.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="the extra palinka[datasets] is not installed")


@pytest.fixture
def folder(tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"body": f"Document {i}.", "year": 1900 + i} for i in range(5)]
    rows[2]["body"] = " "
    rows[3]["body"] = None
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


@pytest.mark.parametrize("streaming", [True, False])
def test_reads_the_rows_in_order(folder: Path, streaming: bool) -> None:
    corpus = HuggingFaceDataset(str(folder), text_field="body", streaming=streaming)
    found = [(document.name, document.text) for document in corpus.documents()]
    assert found == [("row 0", "Document 0."), ("row 1", "Document 1."), ("row 4", "Document 4.")]


def test_fingerprint_of_a_folder_is_that_of_its_content(folder: Path, tmp_path: Path) -> None:
    original = HuggingFaceDataset(str(folder), text_field="body").fingerprint()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert HuggingFaceDataset(str(copy), text_field="body").fingerprint() == original
    assert HuggingFaceDataset(str(copy), text_field="year").fingerprint() != original
    assert HuggingFaceDataset(str(copy), split="test").fingerprint() != original
    (copy / "train.jsonl").write_text('{"body": "other"}\n')
    assert HuggingFaceDataset(str(copy), text_field="body").fingerprint() != original


def test_a_branch_is_pinned_to_its_commit(datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def dataset_info(_: object, path: str, revision: str | None) -> SimpleNamespace:
        asked.append((path, revision))
        return SimpleNamespace(sha=COMMIT)

    def load_dataset(path: str, **options: object) -> Any:
        assert path == "somebody/books"
        assert options["revision"] == COMMIT
        assert options["name"] == "english"
        return datasets.Dataset.from_list([{"text": "Hello."}])

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = HuggingFaceDataset("somebody/books", "english", revision="main")
    assert [document.text for document in corpus.documents()] == ["Hello."]
    assert corpus.fingerprint()["commit"] == COMMIT
    assert corpus.fingerprint()["path"] == "somebody/books"
    assert asked == [("somebody/books", "main")]


def test_a_commit_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("huggingface_hub.HfApi.dataset_info")
    corpus = HuggingFaceDataset("somebody/books", revision=COMMIT)
    assert corpus.fingerprint()["commit"] == COMMIT


@pytest.mark.parametrize("path", ["nobody/nothing", "json", "not/a/name"])
def test_refuses_what_is_neither_a_folder_nor_on_the_hub(
    path: str, datasets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nand more lines")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    corpus = HuggingFaceDataset(path)
    with pytest.raises(InputError, match=f"'{path}' is neither a folder nor .*no network") as info:
        next(corpus.documents())
    assert "\n" not in str(info.value)
    with pytest.raises(InputError, match="is neither a folder nor"):
        corpus.fingerprint()


def test_refuses_a_split_or_configuration_that_is_not_there(folder: Path) -> None:
    with pytest.raises(InputError, match=r"split test\) cannot be loaded: .*train"):
        next(HuggingFaceDataset(str(folder), split="test").documents())
    with pytest.raises(InputError, match=r"name polish, split train\) cannot be loaded"):
        next(HuggingFaceDataset(str(folder), name="polish").documents())


def test_lists_the_columns_if_the_text_column_is_not_there(folder: Path) -> None:
    with pytest.raises(InputError, match="no column 'text'; text_field may be one of body, year"):
        next(HuggingFaceDataset(str(folder)).documents())


def test_refuses_a_column_of_numbers(folder: Path) -> None:
    with pytest.raises(InputError, match=r"row 0 of .* holds int in column 'year'; expected text"):
        next(HuggingFaceDataset(str(folder), text_field="year").documents())


def test_says_how_to_install_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install palinka\[datasets\]"):
        next(HuggingFaceDataset(str(folder)).documents())


@pytest.mark.parametrize("streaming", [True, False])
def test_a_byte_order_mark_is_not_text(folder: Path, streaming: bool) -> None:
    (folder / "train.jsonl").unlink()
    corpus = HuggingFaceDataset(str(folder), streaming=streaming)
    for name in ("a.txt", "b.txt"):
        (folder / name).write_bytes(b"The\nend")
    expected, key = [document.text for document in corpus.documents()], corpus.fingerprint()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_bytes(b"\xef\xbb\xbfThe\nend")
    marked = HuggingFaceDataset(str(folder), streaming=streaming)
    assert [document.text for document in marked.documents()] == expected == ["The", "end"] * 2
    assert marked.fingerprint() == key
    (folder / "a.txt").unlink()
    (folder / "b.txt").write_bytes(b"\xef\xbb\xbf")
    assert list(HuggingFaceDataset(str(folder), streaming=streaming).documents()) == []


GOOD = b'{"text": "one"}\n{"text": "two"}\n'


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.jsonl": GOOD + b'{"text": "thr'}, "JSON parse error"),
        ({"a.jsonl": GOOD, "b.jsonl": b'{"body": "three"}\n'}, "column names don't match"),
        ({"a.jsonl": b"5\n6\n"}, "JSON parse error"),
        ({"a.jsonl": b""}, "a file has no rows"),
        ({"a.csv": b""}, "No columns to parse"),
        ({"a.txt": b"The\n\xff"}, "can't decode byte 0xff"),
    ],
    ids=["broken", "heterogeneous", "no objects", "empty", "empty CSV", "no UTF-8"],
)
def test_broken_files_give_one_line(
    folder: Path, files: dict[str, bytes], reason: str, streaming: bool
) -> None:
    (folder / "train.jsonl").unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as error:
        list(HuggingFaceDataset(str(folder), streaming=streaming).documents())
    assert "\n" not in str(error.value)
