"""From documents to packed contexts of token ids."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from palinka.assets import mini_gpt2_folder
from palinka.data.corpora import Corpus, Document
from palinka.errors import InputError
from palinka.language_models.token_text import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Split: TypeAlias = Literal["train", "validation"]


def split_of(document: int, validation_fraction: float, seed: int) -> Split:
    """Draw the split of a document, whatever else is in the corpus.

    Of each consecutive group of `round(1 / validation_fraction)` documents exactly one, drawn
    with the seed, is for validation: stratified, so that a short corpus gets its share too.
    """
    if not 0 <= validation_fraction <= 0.5:
        raise InputError(f"validation_fraction is {validation_fraction}; expected 0 to 0.5")
    if validation_fraction == 0:
        return "train"
    group, place = divmod(document, size := round(1 / validation_fraction))
    # A hash, since random number generators may change with the version of their library.
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    return "validation" if int.from_bytes(digest) % size == place else "train"


# Short documents go to the tokenizer together, which uses all cores.
_BATCH_DOCUMENTS = 64
_BATCH_CHARACTERS = 500_000


def tokenize_documents(
    documents: Iterable[tuple[int, Document]], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Tokenize numbered documents without special tokens, `(tokens,)`, in their order.

    The name of a special token in a text is tokenized like any other text. Documents of tokens
    are decoded, unless the vocabulary contains that of the mini model with the same ids.
    """
    mini = _mini_tokenizer()
    keeps_tokens = mini.get_vocab().items() <= tokenizer.get_vocab().items()
    batch: list[tuple[int, Document]] = []
    characters = 0
    for index, document in documents:
        if not (isinstance(document, str) or keeps_tokens):
            document = str(mini.decode(document.tolist(), clean_up_tokenization_spaces=False))
        batch.append((index, document))
        characters += len(document)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield from _tokenize_batch(batch, tokenizer)
            batch, characters = [], 0
    yield from _tokenize_batch(batch, tokenizer)


def _tokenize_batch(
    batch: list[tuple[int, Document]], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    ids = iter(token_ids(tokenizer, [item for _, item in batch if isinstance(item, str)]))
    for index, item in batch:
        yield index, np.array(next(ids) if isinstance(item, str) else item, dtype=np.int64)


@cache
def _mini_tokenizer() -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(mini_gpt2_folder())


@dataclass(frozen=True)
class Context:
    """One context of tokens, each with its document and place there; all `(tokens,)`.

    A BOS token belongs to the document of the token after it, at -1; the end-of-text token is at
    the document's length.
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

    The documents are their indices in the corpus and token ids `(tokens,)`; contexts begin with a
    BOS token if there is one. The tokens left at the end that do not fill a context are dropped.
    Memory holds one document and less than one context beside it.
    """
    content = context_length - (bos is not None)
    pieces: list[NDArray[np.int64]] = []  # of tokens, documents and positions, `(3, tokens)`
    waiting = 0
    filled = False
    for index, tokens in documents:
        size = len(tokens) + 1
        columns = (np.append(tokens, end_of_text), np.full(size, index), np.arange(size))
        pieces.append(np.stack(columns, dtype=np.int64))
        waiting += size
        if waiting < content:
            continue
        filled = True
        stream = np.concatenate(pieces, axis=1)
        cut = waiting - waiting % content
        contexts = stream[:, :cut].reshape(3, -1, content)
        if bos is not None:
            heads = contexts[:, :, :1].copy()
            heads[0], heads[2] = bos, -1
            contexts = np.concatenate((heads, contexts), axis=2)
        for context in contexts.swapaxes(0, 1):
            yield Context(*context)
        pieces, waiting = [stream[:, cut:].copy()], waiting - cut
    if not filled:
        fault = f"the documents have {waiting} tokens, fewer than the {content} of one context"
        most = waiting + context_length - content
        raise InputError(f"{fault}; give more text, or a context_length of at most {most}")


def documents_of_split(
    corpus: Corpus, split: Split, validation_fraction: float, seed: int
) -> Iterator[tuple[int, Document]]:
    """Go through the numbered documents of one split; reject a split without any at the end."""
    index, empty = -1, True
    for index, document in enumerate(corpus.documents()):
        if split_of(index, validation_fraction, seed) == split:
            empty = False
            yield index, document
    if empty:
        fault = f"no document is left for the {split} split: the corpus has {index + 1}"
        raise InputError(f"{fault}; give more, or a larger validation_fraction")
