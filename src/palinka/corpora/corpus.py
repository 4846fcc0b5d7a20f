"""What every corpus is: documents in a fixed order, and a fingerprint of their content."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"


@dataclass(frozen=True)
class Document:
    """One text of a corpus, as text or as tokens: exactly one of the two is there.

    Attributes:
        name: What the document is called in messages.
        text: Its text.
        tokens: Its token ids `(tokens,)` in the bundled mini model's vocabulary.
    """

    name: str
    text: str | None = None
    tokens: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.tokens is None):
            raise ValueError(f"document {self.name!r} needs either text or tokens, and not both")


class Corpus(ABC):
    """Documents in an order that never changes; the index of a document is its place in it."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Go through the documents, one in memory at a time."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Json]:
        """What identifies the content, wherever it lies: two equal fingerprints, one content."""
