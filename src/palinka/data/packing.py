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


def _documents_per_group(validation_fraction: float) -> int:
    """Number of documents of which one is for validation; 0 if none is."""
    if not 0 <= validation_fraction <= 0.5:
        raise InputError(
            f"validation_fraction is {validation_fraction}; expected 0 (no validation) to 0.5"
        )
    return round(1 / validation_fraction) if validation_fraction else 0


def split_of(document: int, validation_fraction: float, seed: int) -> Split:
    """Draw the split of a document, whatever else is in the corpus.

    Of each consecutive group of `round(1 / validation_fraction)` documents exactly one, drawn
    with the seed, is for validation: stratified, so that a short corpus gets its share too.

    Args:
        document: Index of the document in the corpus.
        validation_fraction: Share of documents for validation; 0 for none.
        seed: Seeds the draw.

    Raises:
        InputError: If the fraction is not between 0 and one half.
    """
    size = _documents_per_group(validation_fraction)
    if size == 0:
        return "train"
    group, place = divmod(document, size)
    # A hash, since random number generators may change with the version of their library.
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    return "validation" if int.from_bytes(digest) % size == place else "train"


# Short documents go to the tokenizer together, which uses all cores.
_BATCH_DOCUMENTS = 64
_BATCH_CHARACTERS = 500_000


def tokenize_documents(
    documents: Iterable[tuple[int, Document]], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Tokenize documents without special tokens, in their order.

    The name of a special token in a text is tokenized like any other text.

    Args:
        documents: Index in the corpus, and the document.
        tokenizer: Any tokenizer; documents of tokens are decoded for all but the mini model's.

    Yields:
        Index and token ids `(tokens,)` of each document.
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
    """Check whether the vocabulary contains that of the mini model, with the same ids."""
    return _mini_tokenizer().get_vocab().items() <= tokenizer.get_vocab().items()


def _decode(tokens: NDArray[np.int64]) -> str:
    text = _mini_tokenizer().decode(tokens.tolist(), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


@dataclass(frozen=True)
class Context:
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
) -> Iterator[Context]:
    """Join documents, each followed by an end-of-text token, and cut them into contexts.

    The tokens left at the end that do not fill a context are dropped. Memory holds one document
    and less than one context beside it.

    Args:
        documents: Index in the corpus and token ids `(tokens,)` of each document.
        context_length: Tokens in a context, including the BOS token.
        end_of_text: The token after each document.
        bos: The token at the start of each context; None for none.

    Raises:
        InputError: If no token of a document would fit into a context, or if the documents do
            not fill one.
    """
    content = context_length - (bos is not None)
    pieces: list[NDArray[np.integer]] = []
    indices: list[int] = []
    starts: list[int] = []
    waiting = 0
    filled = False
    end = np.array([end_of_text])
    for index, tokens in documents:
        pieces += (tokens, end)
        indices.append(index)
        starts.append(0)
        waiting += len(tokens) + 1
        if waiting < content:
            continue
        filled = True
        joined = np.concatenate(pieces, dtype=np.int64)
        lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
        # A piece of tokens and the end-of-text token after it are one document.
        lengths = lengths[::2] + lengths[1::2]
        first = np.cumsum(lengths) - lengths
        of_document = np.repeat(np.array(indices), lengths)
        at_position = np.arange(waiting) + np.repeat(np.array(starts) - first, lengths)
        cut = waiting - waiting % content
        yield from _contexts(joined[:cut], of_document[:cut], at_position[:cut], content, bos)

        waiting -= cut
        # Only the last document can be left over, for nothing was full before it came.
        pieces = [joined[cut:-1], end] if waiting else []
        indices = [index] if waiting else []
        starts = [int(at_position[cut])] if waiting else []
    if not filled:
        raise InputError(
            f"the documents have {waiting} tokens, fewer than the {content} of one context; give "
            f"more text, or a context_length of at most {waiting + context_length - content}"
        )


def _contexts(
    tokens: NDArray[np.int64],
    documents: NDArray[np.int64],
    positions: NDArray[np.int64],
    content: int,
    bos: int | None,
) -> Iterator[Context]:
    """Cut `(contexts · content,)` arrays, and put the BOS token before each context."""
    rows = [column.reshape(-1, content) for column in (tokens, documents, positions)]
    if bos is not None:
        heads = [
            np.full_like(rows[0][:, :1], bos),
            rows[1][:, :1],
            np.full_like(rows[2][:, :1], -1),
        ]
        rows = [np.hstack(pair) for pair in zip(heads, rows, strict=True)]
    for context in zip(*rows, strict=True):
        yield Context(*context)


def documents_of_split(
    corpus: Corpus, split: Split, validation_fraction: float, seed: int
) -> Iterator[tuple[int, Document]]:
    """Go through the documents of one split, with their indices in the corpus.

    Raises:
        InputError: At the end, if there are none.
    """
    index = -1
    empty = True
    for index, document in enumerate(corpus.documents()):
        if split_of(index, validation_fraction, seed) == split:
            empty = False
            yield index, document
    if index < 0:
        raise InputError("the corpus has no documents; give one with text")
    if empty and not validation_fraction:
        raise InputError(
            "validation_fraction is 0, so the validation split is empty; set it to 0.05, say"
        )
    if empty:
        group = _documents_per_group(validation_fraction)
        raise InputError(
            f"no document is left for the {split} split: the corpus has {index + 1}, and "
            f"validation_fraction {validation_fraction} takes one of each {group} for validation; "
            f"give at least {group} documents, or set validation_fraction to 0"
        )


def token_contexts(
    corpus: Corpus,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    context_length: int,
    split: Split,
    validation_fraction: float,
    seed: int,
    bos: bool = False,
) -> Iterator[Context]:
    """Tokenize the documents of one split and pack them into contexts, always the same ones.

    Args:
        corpus: Source of the documents; contexts refer to them by their index in it.
        tokenizer: The language model's tokenizer.
        context_length: Tokens in a context.
        split: `"train"` or `"validation"`.
        validation_fraction: Share of documents for validation, see `split_of`.
        seed: Draws the documents for validation.
        bos: Whether each context starts with the tokenizer's BOS token.

    Raises:
        InputError: If an argument is out of range, or the tokenizer lacks a token that is needed.
            The iteration also raises it, if the corpus cannot be read or the split does not fill
            a single context.
    """
    if context_length <= bos:
        raise InputError(
            f"context_length is {context_length}; expected at least {1 + bos}"
            + (", one token beside the BOS token" if bos else "")
        )
    _documents_per_group(validation_fraction)
    if split not in get_args(Split):
        raise InputError(f"split is {split!r}; expected one of {', '.join(get_args(Split))}")
    end_of_text: int | None = tokenizer.eos_token_id
    if end_of_text is None:
        raise InputError(
            "the tokenizer has no eos_token for an end-of-text (EOS) token between documents; set"
            " its eos_token"
        )
    documents = documents_of_split(corpus, split, validation_fraction, seed)
    bos_token = bos_id(tokenizer) if bos else None
    return pack(tokenize_documents(documents, tokenizer), context_length, end_of_text, bos_token)
