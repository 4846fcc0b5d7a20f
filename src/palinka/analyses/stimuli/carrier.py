"""Words at the end of one carrier text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from palinka.analyses.stimuli.base import (
    Prepared,
    Stimuli,
    check_words,
    join_problems,
    prepared_items,
    tokens_within,
)
from palinka.errors import InputError
from palinka.language_models.token_text import token_texts, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLOT = "{word}"


@dataclass(frozen=True)
class Carrier(Stimuli):
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
        check_words(self.groups, "groups")
        if self.carrier.count(SLOT) != 1 or not self.carrier.endswith(SLOT):
            raise InputError(
                f"carrier: {self.carrier!r}; give a text that ends with {SLOT}, such as "
                f"'The next word is {SLOT}'"
            )

    def _prepare(self, tokenizer: "PreTrainedTokenizerBase") -> Prepared:
        words = [word for words in self.groups.values() for word in words]
        groups = [name for name, words in self.groups.items() for _ in words]
        texts = [self.carrier.replace(SLOT, word) for word in words]
        encoded = tokenize(tokenizer, texts, offsets=True)
        start = len(self.carrier) - len(SLOT)
        pool, problems = [], []
        for word, group, ids, spans in zip(
            words, groups, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            positions = tokens_within(spans, start, start + len(word))
            made = token_texts(tokenizer, [ids[position] for position in positions])
            if self.pool == "last" and [piece.strip() for piece in made] != [word]:
                problems.append(f"{group}: {word!r} is {made} after the carrier")
            pool.append(positions)
        if problems:
            raise InputError(
                f"{join_problems(problems)}; choose words that are one token, or set pool: mean"
            )
        return prepared_items(self.kind, tokenizer, encoded["input_ids"], pool, words, groups)
