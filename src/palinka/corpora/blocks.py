"""The whole way from a corpus to the packed blocks of one split."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from palinka.corpora.corpus import Corpus, Document
from palinka.corpora.packing import Block, Packing, pack
from palinka.corpora.split import SPLITS, Split, documents_per_group, split_of
from palinka.corpora.tokenization import tokenize_documents
from palinka.errors import InputError
from palinka.tokenization import bos_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
