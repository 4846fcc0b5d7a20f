from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from palinka.analyses.stimuli import base
from palinka.errors import InputError

SLOT = "{word}"


@dataclass(frozen=True)
class Carrier(base.Stimuli):
    """Groups of words, each word at the end of the same text.

    The last token is the item, or the mean over the word's tokens.

    Attributes:
        groups: The words of each group, at least three.
        carrier: The text, which ends with `{word}`.
        pool: `last`, for which a word must be one token after the carrier, or `mean`.
    """

    groups: Mapping[str, Sequence[str]]
    carrier: str
    pool: Literal["last", "mean"] = "last"

    def __post_init__(self) -> None:
        base.check_words(self.groups, "groups")
        if self.carrier.find(SLOT) != len(self.carrier) - len(SLOT):
            raise InputError(f"carrier: {self.carrier!r}; give a text that ends with {SLOT}")

    def _prepare(self, tokenizer: base.Tokenizer) -> base.Prepared:
        groups, words = base.by_item(self.groups)
        texts = [self.carrier.replace(SLOT, word) for word in words]
        spans = [(len(self.carrier) - len(SLOT), len(text)) for text in texts]
        tokens, pool, made = base.tokens_at(tokenizer, texts, spans)
        problems = [
            f"{group}: {word!r} is {pieces} after the carrier"
            for group, word, pieces in zip(groups, words, made, strict=True)
            if [piece.strip() for piece in pieces] != [word]
        ]
        if problems and self.pool == "last":
            given = base.join_problems(problems)
            raise InputError(f"{given}; choose words that are one token, or set pool: mean")
        return base.prepared_items(self.kind, tokenizer, tokens, pool, words, groups)
