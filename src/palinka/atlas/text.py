"""The text that the validation rows come from, as one long array of tokens."""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from palinka.corpora import Block

# Room for the position beside the document in one number.
_POSITIONS = 1 << 32


class Text:
    """Contexts one after the other, and where in them each token of each document stands.

    Args:
        contexts: As the language model has read them.

    Attributes:
        tokens: All token ids, `(tokens,)`.
        documents: The document of each.
        positions: The place of each in its document; -1 for one that begins the text.
        starts: Where the contexts begin, `(contexts + 1,)`, with the end of the last.
    """

    def __init__(self, contexts: Iterable[Block]) -> None:
        blocks = list(contexts)
        lengths = [len(block.tokens) for block in blocks]
        self.tokens = np.concatenate([block.tokens for block in blocks]).astype(np.int64)
        self.documents = np.concatenate([block.documents for block in blocks]).astype(np.int64)
        self.positions = np.concatenate([block.positions for block in blocks]).astype(np.int64)
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        keys = self.documents * _POSITIONS + self.positions
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def locate(
        self, documents: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Where in `tokens` the given tokens of documents stand."""
        found = np.searchsorted(self._keys, documents * _POSITIONS + positions)
        return self._order[np.minimum(found, len(self._order) - 1)]

    def around(
        self, places: NDArray[np.int64], before: int, after: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The places around each place, and which of them are in the same context.

        Args:
            places: `(n,)`.
            before: How many tokens before each.
            after: How many after each.

        Returns:
            Two arrays `(n, before + 1 + after)`.
        """
        context = np.searchsorted(self.starts, places, side="right") - 1
        window = places[:, None] + np.arange(-before, after + 1)
        inside = (window >= self.starts[context][:, None]) & (
            window < self.starts[context + 1][:, None]
        )
        return np.clip(window, 0, len(self.tokens) - 1), inside

    def groups(self, tokens: int) -> Iterator[tuple[int, int, int]]:
        """Neighboring contexts of one length, about so many tokens at a time.

        Yields:
            Where the group begins and ends, and the length of its contexts.
        """
        lengths = np.diff(self.starts)
        first = 0
        while first < len(lengths):
            length = int(lengths[first])
            most = first + max(1, tokens // length)
            last = first + 1
            while last < min(most, len(lengths)) and lengths[last] == length:
                last += 1
            yield int(self.starts[first]), int(self.starts[last]), length
            first = last


def word_numbers(text: Text, vocabulary: Mapping[int, bytes]) -> NDArray[np.int64]:
    """Which word each token belongs to, counted from 0, `(tokens,)`.

    A word begins at a space, at a change between letters or digits and other signs, and where a
    context begins; each sign that is no letter or digit is a word of its own.
    """
    ids, inverse = np.unique(text.tokens, return_inverse=True)
    first = np.array([_begins_apart(vocabulary[token]) for token in ids.tolist()])[inverse]
    last = np.array([_ends_apart(vocabulary[token]) for token in ids.tolist()])[inverse]
    begins = first | np.concatenate([[True], last[:-1]])
    begins[text.starts[:-1]] = True
    numbers: NDArray[np.int64] = np.cumsum(begins) - 1
    return numbers


def _begins_apart(token: bytes) -> bool:
    start = token.decode("utf-8", errors="replace")[:1]
    return not _goes_on(start)


def _ends_apart(token: bytes) -> bool:
    return not _goes_on(token.decode("utf-8", errors="replace")[-1:])


def _goes_on(character: str) -> bool:
    """Whether a word may go on with this; a part of a character may be of a letter."""
    kind = unicodedata.category(character or " ")[0]
    return kind in "LMN" or character in ("'", "\u2019", "\ufffd")
