"""Text to tokens, with where in the text each token stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from palinka.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """One text as tokens.

    Attributes:
        text: The text.
        ids: The token ids, `(tokens,)`.
        spans: First character and the one after the last, of each token; tokens that share a
            character have that character in common.
    """

    text: str
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def positions(self, start: int, stop: int) -> tuple[int, ...]:
        """The tokens that hold any of the characters from `start` up to `stop`."""
        return tuple(
            position
            for position, (first, end) in enumerate(self.spans)
            if first < stop and end > start
        )


def encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[Encoded]:
    """Tokenize texts without special tokens.

    Nothing is put around a text, and the name of a special token in it is text like any other.

    Raises:
        InputError: If the tokenizer cannot say where its tokens stand.
    """
    _require_fast(tokenizer)
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    return [
        Encoded(text, tuple(ids), tuple((start, stop) for start, stop in spans))
        for text, ids, spans in zip(
            texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
        )
    ]


def token_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[tuple[int, ...]]:
    """The ids alone, which is quicker for a long text.

    Raises:
        InputError: If the tokenizer is one that `encode` refuses.
    """
    _require_fast(tokenizer)
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,  # The text may be longer than the model's context: windows are cut from it.
    )
    return [tuple(ids) for ids in encoded["input_ids"]]


def first_token(tokenizer: "PreTrainedTokenizerBase", word: str) -> int:
    """The id of the first token of a word that has a space before it.

    The space stands inside a text here, since some tokenizers put one more at the start.
    """
    before, whole = token_ids(tokenizer, ["a", f"a {word}"])
    return whole[len(before)]


def _require_fast(tokenizer: "PreTrainedTokenizerBase") -> None:
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer {type(tokenizer).__name__} does not say where its tokens stand in the "
            "text; use a model with a tokenizer.json"
        )
