"""Text corpora."""

import hashlib
import re
from abc import ABC, abstractmethod
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader, TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from palinka.assets import mini_sample_file
from palinka.data.format import JSON
from palinka.errors import InputError, expanded, first_line, one_line

Document: TypeAlias = str | NDArray[np.int64]
"""One text, or its token ids `(tokens,)` in the bundled mini model's vocabulary."""


class Corpus(ABC):
    """Documents in a fixed order; the index of a document is its place in it."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Iterate over the documents, one in memory at a time."""

    @abstractmethod
    def fingerprint(self) -> dict[str, JSON]:
        """Identify the content, wherever it is stored."""

    def document_count(self) -> int | None:
        """Number of documents, about, for progress bars; None if unknown."""
        return None


@contextmanager
def _opened(file: Path) -> Iterator[BufferedReader]:
    """Open a file after its UTF-8 byte order mark, if any, which is not part of a text."""
    try:
        with file.open("rb") as stream:
            if stream.read(len(BOM_UTF8)) != BOM_UTF8:
                stream.seek(0)
            yield stream
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror})") from error


def content_hash(files: Iterable[tuple[str, Path]]) -> str:
    """Hash names and texts of `files`, given as name and path; SHA-256 in hex."""
    digest = hashlib.sha256()
    for name, file in files:
        with _opened(file) as stream:
            content = hashlib.file_digest(stream, "sha256").digest()
        # A hash of fixed length after each name: no other names and contents read the same.
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + content)
    return digest.hexdigest()


def _by_name(folder: Path, pattern: str) -> list[tuple[str, Path]]:
    files = (file for file in folder.glob(pattern) if file.is_file())
    return sorted((file.relative_to(folder).as_posix(), file) for file in files)


class BundledSample(Corpus):
    """More than 400,000 tokens sampled from the bundled mini model; text for other tokenizers."""

    def documents(self) -> Iterator[Document]:
        """Iterate over the texts between two end-of-text tokens."""
        sample = load_file(mini_sample_file())
        tokens, offsets = sample["tokens"], sample["offsets"]
        for start, stop in pairwise(offsets):
            yield tokens[start:stop].astype(np.int64)

    def document_count(self) -> int:
        """Number of texts."""
        return len(load_file(mini_sample_file())["offsets"]) - 1

    def fingerprint(self) -> dict[str, JSON]:
        """Hash the sample's file."""
        digest = hashlib.sha256(mini_sample_file().read_bytes())
        return {"kind": "bundled sample", "sha256": digest.hexdigest()}


class Passage(Corpus):
    """A single text as a corpus of one document.

    Args:
        text: The text itself, not the path of a file.
    """

    def __init__(self, text: str) -> None:
        self.text = text.removeprefix("\ufeff")
        if not self.text.strip():
            raise InputError("the passage is empty; give a text of at least one context")

    def documents(self) -> Iterator[Document]:
        """Yield the passage, as the only document."""
        yield self.text

    def fingerprint(self) -> dict[str, JSON]:
        """Hash the text."""
        digest = hashlib.sha256(self.text.encode("utf-8", "surrogatepass"))
        return {"kind": "passage", "sha256": digest.hexdigest()}


@dataclass(eq=False)
class TextFiles(Corpus):
    """A text file, or the text files of a folder: one document per file, sorted by name.

    Files with only white space, and a UTF-8 byte order mark at the start of a file, are left out.

    Args:
        path: A file or a folder; `~` and `$NAME` are expanded.
        pattern: Glob pattern of files in a folder; `**` includes subfolders.
        encoding: Encoding of all the files.
        max_document_characters: Maximum number of characters from the start of each file.
    """

    path: str | Path
    pattern: str = "**/*.txt"
    encoding: str = "utf-8"
    max_document_characters: int | None = None

    def __post_init__(self) -> None:
        most = self.max_document_characters
        if most is not None and most < 1:
            raise InputError(f"max_document_characters is {most}; give 1 or more")
        self.path = expanded(self.path)

    def documents(self) -> Iterator[Document]:
        """Read the files one after the other."""
        texts = (self._read(file) for _, file in self._files())
        yield from (text for text in texts if text.strip())

    def document_count(self) -> int:
        """Number of files, also of empty ones."""
        return len(self._files())

    def fingerprint(self) -> dict[str, JSON]:
        """Hash the names and bytes of all files, wherever they are stored."""
        limit = {"encoding": self.encoding, "max_document_characters": self.max_document_characters}
        return {"kind": "text files", "sha256": content_hash(self._files()), **limit}

    def _files(self) -> list[tuple[str, Path]]:
        path = Path(self.path)
        if path.is_file():
            return [(path.name, path)]
        if not path.is_dir():
            raise InputError(f"{path} was not found; give a text file or a folder of them")
        try:
            found = _by_name(path, self.pattern)
        except (ValueError, NotImplementedError) as error:
            raise InputError(f"{self.pattern!r} is not a glob pattern ({error})") from error
        if not found:
            raise InputError(f"no file in {path} matches {self.pattern!r}; give another pattern")
        return found

    def _read(self, file: Path) -> str:
        try:
            with _opened(file) as raw, TextIOWrapper(raw, self.encoding) as stream:
                return stream.read(self.max_document_characters)
        except UnicodeDecodeError as error:
            fault = f"{file} is not {self.encoding} (byte {error.start} cannot be decoded)"
            raise InputError(f"{fault}; convert it, or name its encoding") from error
        except InputError:
            raise
        except (LookupError, ValueError) as error:
            raise InputError(f"{self.encoding!r} is not a text encoding of Python") from error


@dataclass(eq=False)
class HuggingFaceDataset(Corpus):
    """A data set of the Hugging Face hub, or a folder of JSON, CSV, text or Parquet files.

    One document per row, in the order of the rows; rows with only white space are skipped. A byte
    order mark at the start of a text file is left out. Needs the extra `palinka[datasets]`.

    Args:
        path: Name on the hub, such as `"Salesforce/wikitext"`, or a folder.
        name: Configuration of the data set, if it has several.
        split: Split of the data set, of which a part is used for validation.
        text_field: Column with the text.
        revision: Branch, tag or commit on the hub, by default the latest commit.
        streaming: Fetch rows as they are needed; otherwise the whole data set first.
    """

    path: str
    name: str | None = None
    split: str = "train"
    text_field: str = "text"
    revision: str | None = None
    streaming: bool = True

    def documents(self) -> Iterator[Document]:
        """Iterate over the rows."""
        for number, row in enumerate(self._rows()):
            if (field := self.text_field) not in row:
                hint = f"text_field may be {', '.join(row)}"
                raise InputError(f"{self.path} has no column {field!r}; {hint}")
            if not isinstance(text := row[field], str | None):
                held = f"{type(text).__name__} in column {field!r}"
                raise InputError(f"row {number} of {self.path} holds {held}; expected text")
            if text and text.strip():
                yield text

    def fingerprint(self) -> dict[str, JSON]:
        """Commit on the hub, or hash of the folder's files, with the selection of rows."""
        identity: dict[str, JSON] = {"path": self.path, "commit": self._commit}
        if Path(self.path).is_dir():
            identity = {"sha256": content_hash(_by_name(Path(self.path), "**/*"))}
        chosen = {"name": self.name, "split": self.split, "text_field": self.text_field}
        return {"kind": "Hugging Face dataset", **identity, **chosen}

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            import datasets
        except ImportError as error:
            raise InputError("HuggingFaceDataset needs `pip install palinka[datasets]`") from error
        commit = self._commit
        try:
            source = {"name": self.name, "split": self.split, "revision": commit}
            rows = datasets.load_dataset(self.path, **source, streaming=self.streaming)
            if rows.info.builder_name == "text":  # other formats' readers skip the mark themselves
                rows = ({"text": row["text"].removeprefix("\ufeff")} for row in rows)
            yield from rows
        except Exception as error:  # of any kind, from the readers of each file format
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            empty = isinstance(cause, StopIteration)
            reason = "a file has no rows" if empty else one_line(cause)[:300]
            which = f"{self.path} (name {self.name}, split {self.split})"
            raise InputError(f"the data set {which} cannot be loaded: {reason}") from error

    @cached_property
    def _commit(self) -> str | None:
        """Commit of the revision on the hub; None for a folder."""
        if Path(self.path).is_dir():
            return None
        if self.revision and re.fullmatch("[0-9a-f]{40}", self.revision):
            return self.revision
        from huggingface_hub import HfApi

        try:
            return HfApi().dataset_info(self.path, revision=self.revision).sha
        except Exception as error:  # of the client's HTTP library, which varies by version
            fault = f"{self.path!r} is neither a folder nor found on the hub ({first_line(error)})"
            hint = "check the name and the connection, or give a cached commit as revision"
            raise InputError(f"{fault}; {hint}") from error
