import os
import shutil
from io import TextIOWrapper
from pathlib import Path

import pytest

from palinka.data import TextFiles
from palinka.data import corpora as text_files
from palinka.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    books = tmp_path / "books"
    (books / "more").mkdir(parents=True)
    (books / "b.txt").write_text("Beta € ß", encoding="utf-8")
    (books / "a.txt").write_bytes(b"Alpha\r\nline")
    (books / "more" / "c.txt").write_text("Gamma")
    (books / "notes.md").write_text("Markdown")
    (books / "empty.txt").write_text(" \n")
    return books


def names_and_texts(corpus: TextFiles) -> list[tuple[str, str | None]]:
    return [(document.name, document.text) for document in corpus.documents()]


def test_reads_the_files_of_a_folder_sorted_by_name(folder: Path) -> None:
    assert names_and_texts(TextFiles(folder)) == [
        ("a.txt", "Alpha\nline"),
        ("b.txt", "Beta € ß"),
        ("more/c.txt", "Gamma"),
    ]


def test_takes_what_the_pattern_matches(folder: Path) -> None:
    assert names_and_texts(TextFiles(str(folder), "*.md")) == [("notes.md", "Markdown")]


def test_reads_one_file(folder: Path) -> None:
    assert names_and_texts(TextFiles(folder / "notes.md")) == [("notes.md", "Markdown")]


def test_takes_the_start_of_each_file_only(folder: Path) -> None:
    texts = [text for _, text in names_and_texts(TextFiles(folder, max_document_characters=3))]
    assert texts == ["Alp", "Bet", "Gam"]


def test_decodes_with_the_encoding(tmp_path: Path) -> None:
    file = tmp_path / "old.txt"
    file.write_bytes("Straße".encode("latin-1"))
    assert names_and_texts(TextFiles(file, encoding="latin-1")) == [("old.txt", "Straße")]


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "latin-1"])
def test_a_byte_order_mark_is_not_text(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"The\xc3\xa9")
    plain = TextFiles(tmp_path, encoding=encoding)
    expected, key = names_and_texts(plain), plain.fingerprint()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfThe\xc3\xa9")
    assert names_and_texts(plain) == expected
    # The same text has the same rows; what was harvested with the mark has another key.
    assert plain.fingerprint() == key
    assert names_and_texts(TextFiles(tmp_path, max_document_characters=3)) == [("a.txt", "The")]
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf\n")
    assert names_and_texts(plain) == expected
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(InputError, match="is empty"):
        list(plain.documents())


def test_fingerprint_is_that_of_the_content(folder: Path, tmp_path: Path) -> None:
    original = TextFiles(folder).fingerprint()
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    assert TextFiles(copy).fingerprint() == original
    # What the pattern leaves out does not count.
    (copy / "notes.md").write_text("changed")
    assert TextFiles(copy).fingerprint() == original
    (copy / "b.txt").rename(copy / "z.txt")
    assert TextFiles(copy).fingerprint() != original
    (copy / "z.txt").rename(copy / "b.txt")
    (copy / "a.txt").write_bytes(b"Alpha\r\nlime")
    assert TextFiles(copy).fingerprint() != original
    assert TextFiles(folder, max_document_characters=3).fingerprint() != original
    assert TextFiles(folder, encoding="latin-1").fingerprint() != original


def test_refuses_a_path_that_is_not_there(tmp_path: Path) -> None:
    corpus = TextFiles(tmp_path / "missing")
    with pytest.raises(InputError, match=r"there is no file or folder .*missing; give"):
        next(corpus.documents())
    with pytest.raises(InputError, match="there is no file or folder"):
        corpus.fingerprint()


def test_refuses_a_folder_without_a_matching_file(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no file in .*books matches '\*\.rst'"):
        next(TextFiles(folder, "*.rst").documents())


@pytest.mark.parametrize("pattern", ["", "/absolute/*.txt"])
def test_refuses_what_is_no_pattern(folder: Path, pattern: str) -> None:
    with pytest.raises(InputError, match="is no glob pattern"):
        next(TextFiles(folder, pattern).documents())


def test_refuses_files_that_are_all_empty(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text("  \n")
    with pytest.raises(InputError, match=r"every text file in .* is empty"):
        list(TextFiles(tmp_path).documents())


def test_names_the_file_that_is_not_utf8(folder: Path) -> None:
    (folder / "b.txt").write_bytes(b"Stra\xdfe")
    with pytest.raises(InputError, match=r"b\.txt is not utf-8 \(byte 4 cannot be decoded\)"):
        list(TextFiles(folder).documents())


def test_refuses_an_encoding_that_does_not_exist(folder: Path) -> None:
    with pytest.raises(InputError, match="there is no encoding 'utf-9'"):
        list(TextFiles(folder, encoding="utf-9").documents())


@pytest.mark.parametrize("encoding", ["hex", "undefined", "a\0b"])
def test_refuses_an_encoding_that_is_not_one_of_text(folder: Path, encoding: str) -> None:
    with pytest.raises(InputError, match="there is no encoding"):
        list(TextFiles(folder, encoding=encoding).documents())


def test_a_file_beyond_memory_is_named_unless_only_its_start_is_wanted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Huge(TextIOWrapper):
        def read(self, size: int | None = None) -> str:
            if size is None:
                raise MemoryError
            return super().read(size)

    monkeypatch.setattr(text_files, "TextIOWrapper", Huge)
    with pytest.raises(InputError, match=r"\.txt does not fit into memory; divide it, or set max"):
        list(TextFiles(folder).documents())
    starts = [d.text for d in TextFiles(folder, max_document_characters=3).documents()]
    assert starts[0] == "Alp"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_names_the_file_that_cannot_be_read(folder: Path) -> None:
    (folder / "b.txt").chmod(0)
    with pytest.raises(InputError, match=r"b\.txt cannot be read: Permission denied"):
        list(TextFiles(folder).documents())
    with pytest.raises(InputError, match=r"b\.txt cannot be read"):
        TextFiles(folder).fingerprint()


def test_refuses_a_limit_below_one(folder: Path) -> None:
    with pytest.raises(InputError, match="max_document_characters is 0; expected at least 1"):
        TextFiles(folder, max_document_characters=0)
