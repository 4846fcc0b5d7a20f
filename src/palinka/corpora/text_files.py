"""Text files on disk."""

from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

from palinka.corpora.content_hash import content_hash, skip_byte_order_mark
from palinka.corpora.corpus import Corpus, Document, Json
from palinka.errors import InputError
from palinka.ordinary_file import open_ordinary
from palinka.paths import expanded


class TextFiles(Corpus):
    """A text file, or the text files of a folder: one document per file, sorted by name.

    Files with nothing but white space in them are no documents. A UTF-8 byte order mark at the
    start of a file is not part of its text.

    Args:
        path: A file or a folder; `~` and `$NAME` stand for what a shell makes of them.
        pattern: Which files of a folder to take, as a glob pattern; `**` goes into subfolders.
        encoding: The encoding of all the files.
        max_document_characters: Take only this many characters from the start of each file.

    Raises:
        InputError: If `max_document_characters` is less than one. Going through the documents
            also raises it, for a path that is not there, a folder without a matching file, files
            that are all empty, and a file that cannot be read or decoded.
    """

    def __init__(
        self,
        path: str | Path,
        pattern: str = "**/*.txt",
        encoding: str = "utf-8",
        max_document_characters: int | None = None,
    ) -> None:
        if max_document_characters is not None and max_document_characters < 1:
            raise InputError(
                f"max_document_characters is {max_document_characters}; expected at least 1, or "
                "null for whole files"
            )
        self.path = expanded(path)
        self.pattern = pattern
        self.encoding = encoding
        self.max_document_characters = max_document_characters

    def documents(self) -> Iterator[Document]:
        """Read the files one after the other; a document is named by its path in the folder."""
        empty = True
        for name, file in self._files():
            text = self._read(file)
            if text.strip():
                empty = False
                yield Document(name, text=text)
        if empty:
            raise InputError(f"every text file in {self.path} is empty; give files with text")

    def fingerprint(self) -> dict[str, Json]:
        """One hash over the names and bytes of all files; where they lie does not count."""
        return {
            "kind": "text files",
            "sha256": content_hash(self._files()),
            "encoding": self.encoding,
            "max_document_characters": self.max_document_characters,
        }

    def _files(self) -> list[tuple[str, Path]]:
        """Name and path of each file, sorted by name."""
        if self.path.is_file():
            return [(self.path.name, self.path)]
        if not self.path.is_dir():
            raise InputError(
                f"there is no file or folder {self.path}; give the path of a text file, or of a "
                "folder of text files"
            )
        try:
            found = [file for file in self.path.glob(self.pattern) if file.is_file()]
        except (ValueError, NotImplementedError) as error:
            raise InputError(
                f"{self.pattern!r} is no glob pattern ({error}); give one such as '**/*.txt'"
            ) from error
        if not found:
            raise InputError(
                f"no file in {self.path} matches {self.pattern!r}; put text files there, or give "
                "another pattern"
            )
        return sorted((file.relative_to(self.path).as_posix(), file) for file in found)

    def _read(self, file: Path) -> str:
        try:
            with open_ordinary(file) as raw, TextIOWrapper(raw, self.encoding) as stream:
                skip_byte_order_mark(raw)
                return stream.read(self.max_document_characters)
        except InputError:
            raise
        except UnicodeDecodeError as error:
            raise InputError(
                f"{file} is not {self.encoding} (byte {error.start} cannot be decoded); convert "
                "it, or name its encoding"
            ) from error
        except MemoryError as error:
            raise InputError(
                f"{file} does not fit into memory; divide it, or set max_document_characters"
            ) from error
        except (LookupError, ValueError) as error:
            raise InputError(
                f"there is no encoding {self.encoding!r}; give one that Python knows, such as "
                "'utf-8' or 'latin-1'"
            ) from error
        except OSError as error:
            raise InputError(
                f"{file} cannot be read ({error.strerror}); check its permissions"
            ) from error
