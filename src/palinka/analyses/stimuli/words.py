"""Bare words, by condition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from palinka.analyses.stimuli.base import Prepared, Stimuli, Tokenizer, check_words, prepared_items
from palinka.language_models.token_text import token_ids


@dataclass(frozen=True)
class Words(Stimuli):
    """Lists of words, each tokenized alone with no space before it.

    The mean over the word's tokens is the item.

    Attributes:
        conditions: The words of each condition, at least three.
    """

    kind: ClassVar[str] = "words"

    conditions: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        check_words(self.conditions, "conditions")

    def _prepare(self, tokenizer: Tokenizer) -> Prepared:
        words = [word for words in self.conditions.values() for word in words]
        ids = token_ids(tokenizer, words)
        conditions = [name for name, words in self.conditions.items() for _ in words]
        pool = [range(len(tokens)) for tokens in ids]
        return prepared_items(self.kind, tokenizer, ids, pool, words, conditions)
