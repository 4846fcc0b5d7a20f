"""Documents become token ids."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from palinka.assets import mini_gpt2_folder
from palinka.corpora.corpus import Document
from palinka.tokenization import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
