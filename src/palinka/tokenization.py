"""Token ids of texts, by the one rule of corpora, stimuli and language models."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from palinka.errors import InputError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase


def tokenize(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], offsets: bool = False
) -> "BatchEncoding":
    """Tokenize texts without special tokens, whatever the tokenizer would add by itself.

    The name of a special token in a text is text like any other.

    Args:
        tokenizer: The language model's tokenizer.
        texts: Texts of any length.
        offsets: Whether to add `offset_mapping`, each token's place in its text.

    Returns:
        `input_ids`: a list of ids for each text.
    """
    encoded: BatchEncoding = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=offsets,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # texts may be longer than the model's context: they are cut
    )
    return encoded


def token_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """The ids that `tokenize` gives for each text, `(tokens,)`."""
    ids: list[list[int]] = tokenize(tokenizer, texts)["input_ids"] if texts else []
    return ids


def bos_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of the token that contexts begin with where `bos` is true.

    Raises:
        InputError: If the tokenizer has none.
    """
    if not isinstance(tokenizer.bos_token_id, int):
        raise InputError(
            "the tokenizer has no bos_token for a BOS token at the start of each context; set bos"
            " to false"
        )
    return tokenizer.bos_token_id
