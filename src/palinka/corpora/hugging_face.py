"""Data sets of the Hugging Face hub, or in their format on disk."""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from palinka.corpora.content_hash import content_hash
from palinka.corpora.corpus import Corpus, Document, Json
from palinka.errors import InputError


class HuggingFaceDataset(Corpus):
    """A data set of the Hugging Face hub, or a local folder of JSON, CSV, text or Parquet files.

    One document per row, in the order of the rows; rows with nothing but white space in them
    are no documents. A byte order mark at the start of a text file is not part of its text. Needs
    the extra `palinka[datasets]`.

    Args:
        path: Name on the hub, such as `"Salesforce/wikitext"`, or a folder.
        name: Which of the data set's configurations, where it has several.
        split: Which of its splits; `split_of` divides this one again.
        text_field: The column with the text.
        revision: Branch, tag or commit on the hub. For a branch or none, the commit that it
            stands for now is looked up and kept to.
        streaming: Fetch rows as they are needed; otherwise the whole data set first.

    Raises:
        InputError: Going through the documents raises it, if `datasets` is not installed, or if
            there is no such data set, configuration, split or text column.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        text_field: str = "text",
        revision: str | None = None,
        streaming: bool = True,
    ) -> None:
        self.path = path
        self.name = name
        self.split = split
        self.text_field = text_field
        self.revision = revision
        self.streaming = streaming

    def documents(self) -> Iterator[Document]:
        """The rows, each named by its number."""
        for number, row in enumerate(self._rows()):
            if self.text_field not in row:
                raise InputError(
                    f"{self.path} has no column {self.text_field!r}; text_field may be one of "
                    f"{', '.join(row)}"
                )
            text = row[self.text_field]
            if not isinstance(text, str | None):
                raise InputError(
                    f"row {number} of {self.path} holds {type(text).__name__} in column "
                    f"{self.text_field!r}; expected text"
                )
            if text and text.strip():
                yield Document(f"row {number}", text=text)

    def fingerprint(self) -> dict[str, Json]:
        """The commit on the hub, or the hash of the folder's files, and which rows are meant."""
        identity: dict[str, Json] = (
            {"sha256": content_hash(self._local_files())}
            if self._is_local
            else {"path": self.path, "commit": self._commit}
        )
        return {
            "kind": "Hugging Face dataset",
            **identity,
            "name": self.name,
            "split": self.split,
            "text_field": self.text_field,
        }

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            import datasets
        except ImportError as error:
            raise InputError(
                "the corpus HuggingFaceDataset needs the package datasets; "
                "run `pip install palinka[datasets]`"
            ) from error
        commit = None if self._is_local else self._commit
        try:
            rows = datasets.load_dataset(
                self.path,
                name=self.name,
                split=self.split,
                revision=commit,
                streaming=self.streaming,
            )
            if rows.info.builder_name == "text":  # other formats' readers skip the mark themselves
                rows = ({"text": row["text"].removeprefix("\ufeff")} for row in rows)
            yield from rows
        except Exception as error:  # of any kind, from the readers of each file format
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            empty = isinstance(cause, StopIteration)
            reason = "a file has no rows" if empty else " ".join(str(cause).split())[:300]
            raise InputError(
                f"the data set {self.path} (name {self.name}, split {self.split}) cannot be "
                f"loaded: {reason or type(cause).__name__}"
            ) from error

    @property
    def _is_local(self) -> bool:
        return Path(self.path).is_dir()

    def _local_files(self) -> list[tuple[str, Path]]:
        folder = Path(self.path)
        files = (file for file in folder.rglob("*") if file.is_file())
        return sorted((file.relative_to(folder).as_posix(), file) for file in files)

    @cached_property
    def _commit(self) -> str:
        """The commit on the hub that the name and the revision stand for."""
        if self.revision and re.fullmatch("[0-9a-f]{40}", self.revision):
            return self.revision
        from huggingface_hub import HfApi

        try:
            commit = HfApi().dataset_info(self.path, revision=self.revision).sha
        # The hub client lets the errors of its HTTP library through, and has changed that library.
        except Exception as error:
            raise InputError(
                f"{self.path!r} is neither a folder nor a data set that the Hugging Face hub "
                f"could be asked about ({_first_line(error)}); check the name and the connection, "
                "or give a whole commit hash as revision for one that is cached"
            ) from error
        if commit is None:
            raise InputError(f"the hub names no commit of {self.path}; give one as revision")
        return commit


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
