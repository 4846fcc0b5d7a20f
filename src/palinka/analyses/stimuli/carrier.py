"""Words at the end of one carrier text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from palinka.analyses.stimuli import base
from palinka.errors import InputError
from palinka.language_models.token_text import token_texts, tokenize

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

    kind: ClassVar[str] = "carrier"

    groups: Mapping[str, Sequence[str]]
    carrier: str
    pool: Literal["last", "mean"] = "last"

    def __post_init__(self) -> None:
        base.check_words(self.groups, "groups")
        if self.carrier.find(SLOT) != len(self.carrier) - len(SLOT):
            raise InputError(f"carrier: {self.carrier!r}; give a text that ends with {SLOT}")

    def _prepare(self, tokenizer: base.Tokenizer) -> base.Prepared:
        words = [word for words in self.groups.values() for word in words]
        groups = [name for name, words in self.groups.items() for _ in words]
        texts = [self.carrier.replace(SLOT, word) for word in words]
        encoded = tokenize(tokenizer, texts, offsets=True)
        tokens, spans = encoded["input_ids"], encoded["offset_mapping"]
        start = len(self.carrier) - len(SLOT)
        pool, problems = [], []
        for word, group, ids, places in zip(words, groups, tokens, spans, strict=True):
            pool.append(base.tokens_within(places, start, start + len(word)))
            made = token_texts(tokenizer, [ids[position] for position in pool[-1]])
            if self.pool == "last" and [piece.strip() for piece in made] != [word]:
                problems.append(f"{group}: {word!r} is {made} after the carrier")
        if problems:
            given = base.join_problems(problems)
            raise InputError(f"{given}; choose words that are one token, or set pool: mean")
        return base.prepared_items(self.kind, tokenizer, tokens, pool, words, groups)
