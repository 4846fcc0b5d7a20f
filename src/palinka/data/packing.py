"""From documents to packed contexts of token ids."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from palinka.assets import mini_gpt2_folder
from palinka.data.corpora import Corpus, Document
from palinka.errors import InputError
from palinka.language_models.token_text import bos_id, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Split: TypeAlias = Literal["train", "validation"]
SPLITS: tuple[str, ...] = get_args(Split)


def documents_per_group(validation_fraction: float) -> int:
    """One document in so many is for validation; 0 if none is.

    Raises:
        InputError: If the fraction is not between 0 and one half.
    """
    if not 0 <= validation_fraction <= 0.5:
        raise InputError(
            f"validation_fraction is {validation_fraction}; expected 0 (no validation) to 0.5"
        )
    return round(1 / validation_fraction) if validation_fraction else 0


def split_of(document: int, validation_fraction: float, seed: int) -> Split:
    """The split that a document belongs to, whatever else is in the corpus.

    Of each consecutive group of `round(1 / validation_fraction)` documents exactly one, drawn
    with the seed, is for validation: stratified, so that a short corpus gets its share too.

    Args:
        document: Index of the document in the corpus.
        validation_fraction: Share of documents for validation; 0 for none.
        seed: Another seed, other documents.

    Raises:
        InputError: If the fraction is not between 0 and one half.
    """
    size = documents_per_group(validation_fraction)
    if size == 0:
        return "train"
    group, place = divmod(document, size)
    # A hash, since random number generators may change with the version of their library.
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    return "validation" if int.from_bytes(digest) % size == place else "train"


# Short documents go to the tokenizer together, which spreads them over the processors.
_BATCH_DOCUMENTS = 64
_BATCH_CHARACTERS = 500_000


def tokenize_documents(
    documents: Iterable[tuple[int, Document]], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Token ids `(tokens,)` of each document, with its index, in the order of the documents.

    No special token comes in: neither one that the tokenizer would put around a text, nor one
    whose name stands in the text, which is tokenized like any other text.

    Args:
        documents: Index in the corpus, and the document.
        tokenizer: Any tokenizer; documents of tokens are decoded for all but the mini model's.
    """
    keeps_tokens = _has_mini_vocabulary(tokenizer)
    batch: list[tuple[int, NDArray[np.int64] | str]] = []
    characters = 0
    for index, document in documents:
        if document.text is not None:
            batch.append((index, document.text))
            characters += len(document.text)
        else:
            assert document.tokens is not None
            batch.append((index, document.tokens if keeps_tokens else _decode(document.tokens)))
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield from _tokenize_batch(batch, tokenizer)
            batch, characters = [], 0
    yield from _tokenize_batch(batch, tokenizer)


def _tokenize_batch(
    batch: list[tuple[int, NDArray[np.int64] | str]], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    ids = iter(token_ids(tokenizer, [item for _, item in batch if isinstance(item, str)]))
    for index, item in batch:
        yield index, np.array(next(ids) if isinstance(item, str) else item, dtype=np.int64)


@cache
def _mini_tokenizer() -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(mini_gpt2_folder())


def _has_mini_vocabulary(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the ids of the mini model mean the same to this tokenizer (it may have more)."""
    return _mini_tokenizer().get_vocab().items() <= tokenizer.get_vocab().items()


def _decode(tokens: NDArray[np.int64]) -> str:
    text = _mini_tokenizer().decode(tokens.tolist(), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


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


def token_blocks(
    corpus: Corpus,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    context_length: int,
    split: Split,
    validation_fraction: float,
    seed: int,
    bos: bool = False,
) -> Iterator[Block]:
    """Tokenize the documents of one split and pack them into blocks, always the same ones.

    Args:
        corpus: Where the documents come from; the blocks name them by their index in it.
        tokenizer: The language model's tokenizer.
        context_length: Tokens in a block.
        split: `"train"` or `"validation"`.
        validation_fraction: Share of documents for validation, see `split_of`.
        seed: Draws the documents for validation.
        bos: Whether each block starts with the tokenizer's BOS token.

    Raises:
        InputError: If an argument is out of range, or the tokenizer lacks a token that is needed.
            Going through the blocks also raises it, where the corpus cannot be read or the split
            does not fill a single block.
    """
    packing = Packing(context_length, bos)
    documents_per_group(validation_fraction)
    if split not in SPLITS:
        raise InputError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    end_of_text: int | None = tokenizer.eos_token_id
    if end_of_text is None:
        raise InputError(
            "the tokenizer has no eos_token for an end-of-text (EOS) token between documents; set"
            " its eos_token"
        )
    bos_token = bos_id(tokenizer) if bos else None

    documents = _DocumentsOfSplit(corpus, split, validation_fraction, seed)
    tokens = _CountedTokens(tokenize_documents(documents, tokenizer))
    blocks = pack(tokens, context_length, end_of_text, bos_token)
    return _at_least_one(blocks, documents, tokens, packing)


class _DocumentsOfSplit:
    """The documents of one split with their indices; counts what it has passed."""

    def __init__(self, corpus: Corpus, split: Split, validation_fraction: float, seed: int) -> None:
        self.corpus = corpus
        self.split = split
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.passed = 0
        self.taken = 0

    def __iter__(self) -> Iterator[tuple[int, Document]]:
        for index, document in enumerate(self.corpus.documents()):
            self.passed += 1
            if split_of(index, self.validation_fraction, self.seed) == self.split:
                self.taken += 1
                yield index, document


class _CountedTokens:
    """Tokenized documents; counts their tokens, the end-of-text token of each included."""

    def __init__(self, documents: Iterator[tuple[int, NDArray[np.int64]]]) -> None:
        self.documents = documents
        self.count = 0

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        for index, tokens in self.documents:
            self.count += len(tokens) + 1
            yield index, tokens


def _at_least_one(
    blocks: Iterator[Block],
    documents: _DocumentsOfSplit,
    tokens: _CountedTokens,
    packing: Packing,
) -> Iterator[Block]:
    first = next(blocks, None)
    if first is None:
        raise InputError(_why_empty(documents, tokens, packing))
    yield first
    yield from blocks


def _why_empty(documents: _DocumentsOfSplit, tokens: _CountedTokens, packing: Packing) -> str:
    if documents.passed == 0:
        return "the corpus has no documents; give one with text"
    if documents.validation_fraction == 0 and documents.taken == 0:
        return "there is no validation split, since validation_fraction is 0; set it to 0.05, say"
    if documents.taken == 0:
        group = documents_per_group(documents.validation_fraction)
        return (
            f"no document is left for the {documents.split} split: the corpus has "
            f"{documents.passed}, and validation_fraction {documents.validation_fraction} takes "
            f"one of each {group} for validation; give at least {group} documents, or set "
            "validation_fraction to 0"
        )
    needed = packing.context_length - packing.bos
    return (
        f"the {documents.split} split has {tokens.count} tokens, fewer than the {needed} of one "
        f"context; give more text, or a context_length of at most {tokens.count + packing.bos}"
    )
