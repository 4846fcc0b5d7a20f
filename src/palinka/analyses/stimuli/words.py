from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from palinka.analyses.stimuli import base
from palinka.language_models.token_text import token_ids


@dataclass(frozen=True)
class Words(base.Stimuli):
    """Lists of words, each tokenized alone with no space before it.

    The mean over the word's tokens is the item.

    Attributes:
        conditions: The words of each condition, at least three.
    """

    conditions: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        base.check_words(self.conditions, "conditions")

    def _prepare(self, tokenizer: base.Tokenizer) -> base.Prepared:
        conditions, words = base.by_item(self.conditions)
        ids = token_ids(tokenizer, words)
        pool = [range(len(tokens)) for tokens in ids]
        return base.prepared_items(self.kind, tokenizer, ids, pool, words, conditions)
