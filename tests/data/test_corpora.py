import hashlib
import json
import shutil
import sys
from io import TextIOWrapper
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from palinka.assets import mini_sample_file
from palinka.data import BundledSample, Corpus, Document, HuggingFaceDataset, Passage, TextFiles
from palinka.data.corpora import content_hash
from palinka.errors import InputError


def test_the_hash_depends_on_names_and_bytes_alone(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"content")
    # As it was before byte order marks were skipped: caches keep their keys.
    known = hashlib.sha256(b"a\0" + hashlib.sha256(b"content").digest()).hexdigest()
    for same in (b"content", b"\xef\xbb\xbfcontent"):
        two.write_bytes(same)
        assert content_hash([("a", one)]) == content_hash([("a", two)]) == known
    two.write_bytes(b"other")
    others = ([("a", two)], [("b", one)], [("a", one), ("a", one)])
    assert known not in map(content_hash, others)
    with pytest.raises(InputError, match="gone cannot be read"):
        content_hash([("gone", tmp_path / "gone")])


def test_the_sample_is_all_tokens_of_the_file_in_order() -> None:
    documents = list(BundledSample().documents())
    sample = load_file(mini_sample_file())
    assert len(documents) == len(sample["offsets"]) - 1 == BundledSample().document_count()
    assert {array.dtype for array in documents} == {np.dtype(np.int64)}
    np.testing.assert_array_equal(np.concatenate(documents), sample["tokens"])
    assert BundledSample().fingerprint() == BundledSample().fingerprint()


def test_a_passage_is_one_document_with_the_fingerprint_of_its_text() -> None:
    (document,) = Passage("I saw him.").documents()
    assert document == "I saw him."
    (marked,) = Passage("\ufeffI saw him.").documents()
    assert marked == document
    assert Passage("a").fingerprint() == Passage("a").fingerprint() != Passage("b").fingerprint()
    for text in ("", " \n\t", "\ufeff\n"):
        with pytest.raises(InputError, match="the passage is empty; give"):
            Passage(text)


@pytest.fixture
def books(tmp_path: Path) -> Path:
    books = tmp_path / "books"
    (books / "more").mkdir(parents=True)
    (books / "b.txt").write_text("Beta € ß", encoding="utf-8")
    (books / "a.txt").write_bytes(b"Alpha\r\nline")
    (books / "more" / "c.txt").write_text("Gamma")
    (books / "notes.md").write_text("Markdown")
    (books / "empty.txt").write_text(" \n")
    return books


def texts(corpus: Corpus) -> list[Document]:
    return list(corpus.documents())


def test_reads_what_it_is_given_sorted_by_name(books: Path) -> None:
    assert texts(TextFiles(books)) == ["Alpha\nline", "Beta € ß", "Gamma"]
    assert TextFiles(books).document_count() == 4, "one is empty"
    assert texts(TextFiles(str(books), "*.md")) == ["Markdown"]
    assert texts(TextFiles(books / "notes.md")) == ["Markdown"]
    assert texts(TextFiles(books, max_document_characters=3)) == ["Alp", "Bet", "Gam"]
    (books / "old.txt").write_bytes("Straße".encode("latin-1"))
    old = TextFiles(books / "old.txt", encoding="latin-1")
    assert texts(old) == ["Straße"]


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "latin-1"])
def test_a_byte_order_mark_of_a_file_is_not_text(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"The\xc3\xa9")
    plain = TextFiles(tmp_path, encoding=encoding)
    expected, key = texts(plain), plain.fingerprint()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfThe\xc3\xa9")
    assert texts(plain) == expected
    # The same text has the same rows; what was harvested with the mark has another key.
    assert plain.fingerprint() == key
    assert texts(TextFiles(tmp_path, max_document_characters=3)) == ["The"]
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf\n")
    assert texts(plain) == expected
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf")
    assert texts(plain) == []


def test_fingerprint_is_that_of_the_content(books: Path, tmp_path: Path) -> None:
    original = TextFiles(books).fingerprint()
    copy = tmp_path / "elsewhere"
    shutil.copytree(books, copy)
    assert TextFiles(copy).fingerprint() == original
    # What the pattern leaves out does not count.
    (copy / "notes.md").write_text("changed")
    assert TextFiles(copy).fingerprint() == original
    (copy / "b.txt").rename(copy / "z.txt")
    assert TextFiles(copy).fingerprint() != original
    (copy / "z.txt").rename(copy / "b.txt")
    (copy / "a.txt").write_bytes(b"Alpha\r\nlime")
    assert TextFiles(copy).fingerprint() != original
    assert TextFiles(books, max_document_characters=3).fingerprint() != original
    assert TextFiles(books, encoding="latin-1").fingerprint() != original


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        ("missing", {}, "missing was not found; give a text file or a folder"),
        ("", {"pattern": "*.rst"}, r"no file in .*books matches '\*\.rst'"),
        ("", {"pattern": ""}, "is not a glob pattern"),
        ("", {"pattern": "/absolute/*.txt"}, "is not a glob pattern"),
        ("", {"pattern": "*.old"}, r"d\.old is not utf-8 \(byte 4 cannot be decoded\)"),
        ("", {"max_document_characters": 0}, "max_document_characters is 0"),
        *(("", {"encoding": e}, "is not a text") for e in ("utf-9", "hex", "undefined", "a\0b")),
    ],
)
def test_what_cannot_be_read_is_rejected(
    books: Path, place: str, options: dict[str, Any], message: str
) -> None:
    (books / "d.old").write_bytes(b"Stra\xdfe")
    with pytest.raises(InputError, match=message) as error:
        list(TextFiles(books / place, **options).documents())
    assert "\n" not in str(error.value)


def test_no_more_of_a_file_is_read_than_wanted(
    books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Huge(TextIOWrapper):
        def read(self, size: int | None = None) -> str:
            assert size is not None
            return super().read(size)

    monkeypatch.setattr("palinka.data.corpora.TextIOWrapper", Huge)
    starts = texts(TextFiles(books, max_document_characters=3))
    assert starts[0] == "Alp"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="the extra palinka[datasets] is not installed")


@pytest.fixture
def dataset(tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"body": f"Document {i}.", "year": 1900 + i} for i in range(5)]
    rows[2]["body"] = " "
    rows[3]["body"] = None
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


@pytest.mark.parametrize("streaming", [True, False])
def test_reads_the_rows_in_order(dataset: Path, streaming: bool) -> None:
    corpus = HuggingFaceDataset(str(dataset), text_field="body", streaming=streaming)
    found = texts(corpus)
    assert found == ["Document 0.", "Document 1.", "Document 4."]


def test_fingerprint_of_a_folder_is_that_of_its_content(dataset: Path, tmp_path: Path) -> None:
    original = HuggingFaceDataset(str(dataset), text_field="body").fingerprint()
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
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
    assert texts(corpus) == ["Hello."]
    assert corpus.fingerprint()["commit"] == COMMIT
    assert corpus.fingerprint()["path"] == "somebody/books"
    assert asked == [("somebody/books", "main")]
    monkeypatch.delattr("huggingface_hub.HfApi.dataset_info")
    assert HuggingFaceDataset("somebody/books", revision=COMMIT).fingerprint()["commit"] == COMMIT


@pytest.mark.parametrize("path", ["nobody/nothing", "json", "not/a/name"])
def test_rejects_what_is_neither_a_folder_nor_on_the_hub(
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


def test_rejects_a_split_or_configuration_that_is_not_there(dataset: Path) -> None:
    with pytest.raises(InputError, match=r"split test\) cannot be loaded: .*train"):
        next(HuggingFaceDataset(str(dataset), split="test").documents())
    with pytest.raises(InputError, match=r"name polish, split train\) cannot be loaded"):
        next(HuggingFaceDataset(str(dataset), name="polish").documents())


def test_columns_that_do_not_hold_text_are_rejected(dataset: Path) -> None:
    with pytest.raises(InputError, match="no column 'text'; text_field may be body, year"):
        next(HuggingFaceDataset(str(dataset)).documents())
    with pytest.raises(InputError, match=r"row 0 of .* holds int in column 'year'; expected text"):
        next(HuggingFaceDataset(str(dataset), text_field="year").documents())


def test_says_how_to_install_the_extra(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install palinka\[datasets\]"):
        next(HuggingFaceDataset(str(dataset)).documents())


@pytest.mark.parametrize("streaming", [True, False])
def test_a_byte_order_mark_in_a_data_set_is_not_text(dataset: Path, streaming: bool) -> None:
    (dataset / "train.jsonl").unlink()
    corpus = HuggingFaceDataset(str(dataset), streaming=streaming)
    for name in ("a.txt", "b.txt"):
        (dataset / name).write_bytes(b"The\nend")
    expected, key = texts(corpus), corpus.fingerprint()
    for name in ("a.txt", "b.txt"):
        (dataset / name).write_bytes(b"\xef\xbb\xbfThe\nend")
    marked = HuggingFaceDataset(str(dataset), streaming=streaming)
    assert texts(marked) == expected == ["The", "end"] * 2
    assert marked.fingerprint() == key
    (dataset / "a.txt").unlink()
    (dataset / "b.txt").write_bytes(b"\xef\xbb\xbf")
    assert list(HuggingFaceDataset(str(dataset), streaming=streaming).documents()) == []


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
)
def test_broken_files_give_one_line(
    dataset: Path, files: dict[str, bytes], reason: str, streaming: bool
) -> None:
    (dataset / "train.jsonl").unlink()
    for name, content in files.items():
        (dataset / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as error:
        list(HuggingFaceDataset(str(dataset), streaming=streaming).documents())
    assert "\n" not in str(error.value)
