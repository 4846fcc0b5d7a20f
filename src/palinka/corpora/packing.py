"""Documents of any length become blocks of one length."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from palinka.errors import InputError


@dataclass(frozen=True)
class Packing:
    """How documents are packed.

    Args:
        context_length: Tokens in a block.
        bos: Whether each block starts with the tokenizer's beginning-of-sequence token.

    Raises:
        InputError: If no token of a document would fit into a block.
    """

    context_length: int
    bos: bool = False

    def __post_init__(self) -> None:
        if self.context_length <= self.bos:
            raise InputError(
                f"context_length is {self.context_length}; expected at least {1 + self.bos}"
                + (", one token beside the BOS token" if self.bos else "")
            )


@dataclass(frozen=True)
class Block:
    """One context of tokens, each with the place that it comes from; all arrays `(tokens,)`.

    Attributes:
        tokens: Token ids.
        documents: Index of the token's document in the corpus; a BOS token belongs to the
            document of the token after it.
        positions: Place of the token in its document; the end-of-text token is at the document's
            length, a BOS token at -1.
    """

    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]
    positions: NDArray[np.int64]


def pack(
    documents: Iterable[tuple[int, NDArray[np.integer]]],
    context_length: int,
    end_of_text: int,
    bos: int | None = None,
) -> Iterator[Block]:
    """Join documents, each followed by an end-of-text token, and cut them into blocks.

    What is left at the end and does not fill a block is dropped. Memory holds one document and
    less than one block beside it.

    Args:
        documents: Index in the corpus and token ids `(tokens,)` of each document.
        context_length: Tokens in a block, the BOS token counted.
        end_of_text: The token after each document.
        bos: The token at the start of each block, if there is to be one.

    Raises:
        InputError: If no token of a document would fit into a block.
    """
    Packing(context_length, bos is not None)
    content = context_length - (bos is not None)
    pieces: list[NDArray[np.integer]] = []
    indices: list[int] = []
    starts: list[int] = []
    waiting = 0
    end = np.array([end_of_text])
    for index, tokens in documents:
        pieces += (tokens, end)
        indices.append(index)
        starts.append(0)
        waiting += len(tokens) + 1
        if waiting < content:
            continue
        joined = np.concatenate(pieces, dtype=np.int64)
        lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
        # A piece of tokens and the end-of-text token after it are one document.
        lengths = lengths[::2] + lengths[1::2]
        first = np.cumsum(lengths) - lengths
        of_document = np.repeat(np.array(indices), lengths)
        at_position = np.arange(waiting) + np.repeat(np.array(starts) - first, lengths)
        cut = waiting - waiting % content
        yield from _blocks(joined[:cut], of_document[:cut], at_position[:cut], content, bos)

        waiting -= cut
        # Only the last document can be left over, for nothing was full before it came.
        pieces = [joined[cut:-1], end] if waiting else []
        indices = [index] if waiting else []
        starts = [int(at_position[cut])] if waiting else []


def _blocks(
    tokens: NDArray[np.int64],
    documents: NDArray[np.int64],
    positions: NDArray[np.int64],
    content: int,
    bos: int | None,
) -> Iterator[Block]:
    """Cut `(blocks · content,)` arrays, and put the BOS token before each block."""
    columns = [tokens, documents, positions]
    rows = [column.reshape(-1, content) for column in columns]
    if bos is not None:
        heads = [
            np.full_like(rows[0][:, :1], bos),
            rows[1][:, :1],
            np.full_like(rows[2][:, :1], -1),
        ]
        rows = [np.hstack(pair) for pair in zip(heads, rows, strict=True)]
    for block in zip(*rows, strict=True):
        yield Block(*block)
