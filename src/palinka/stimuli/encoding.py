"""Text to tokens, with where in the text each token stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from palinka.tokenization import token_ids, tokenize

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
    """Tokenize texts by the rule of `palinka.tokenization`, with the place of each token."""
    encoded = tokenize(tokenizer, texts, offsets=True)
    return [
        Encoded(text, tuple(ids), tuple((start, stop) for start, stop in spans))
        for text, ids, spans in zip(
            texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
        )
    ]


def first_token(tokenizer: "PreTrainedTokenizerBase", word: str) -> int:
    """The id of the first token of a word that has a space before it.

    The space stands inside a text here, since some tokenizers put one more at the start.
    """
    before, whole = token_ids(tokenizer, ["a", f"a {word}"])
    return whole[len(before)]
