"""One text, given as it is."""

import hashlib
from collections.abc import Iterator

from palinka.corpora.corpus import Corpus, Document, Json
from palinka.errors import InputError


class Passage(Corpus):
    """A single text as a corpus of one document.

    Args:
        text: The text itself, not the path of a file, without a byte order mark.

    Raises:
        InputError: If there is nothing but white space in it.
    """

    def __init__(self, text: str) -> None:
        self.text = text.removeprefix("\ufeff")
        if not self.text.strip():
            raise InputError("the passage is empty; give a text of at least one context")

    def documents(self) -> Iterator[Document]:
        """The passage, as the only document."""
        yield Document("passage", text=self.text)

    def fingerprint(self) -> dict[str, Json]:
        """The hash of the text."""
        digest = hashlib.sha256(self.text.encode("utf-8", "surrogatepass"))
        return {"kind": "passage", "sha256": digest.hexdigest()}
