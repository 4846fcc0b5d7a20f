"""One running text with categories of words in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from palinka.analyses.stimuli import base
from palinka.errors import InputError, escape_control_chars
from palinka.language_models.token_text import token_ids, token_texts


@dataclass(frozen=True)
class Passage(base.Stimuli):
    """A text of which every token is an item, and named categories of words.

    A token belongs to a category if it equals the first token of one of the category's words
    with a space before it.

    Attributes:
        text: The text.
        categories: The words of each category; empty where the text alone is of interest.
    """

    text: str
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError("text: blank; give the passage")
        for name, words in self.categories.items():
            if not words:
                raise InputError(f"categories.{name}: empty; give at least one word")
            base.check_trimmed(words, f"categories.{name}")

    def _prepare(self, tokenizer: base.Tokenizer) -> base.Prepared:
        (ids,) = token_ids(tokenizer, [self.text])
        display = tuple(token_texts(tokenizer, ids))
        targets, problems = {}, []
        for name, words in self.categories.items():
            firsts = {word: first_token(tokenizer, word) for word in words}
            if absent := [repr(word) for word, first in firsts.items() if first not in ids]:
                problems.append(f"categories.{name}: {', '.join(absent)}")
            targets[escape_control_chars(name)] = tuple(token in firsts.values() for token in ids)
        if problems:
            missing = f"{base.join_problems(problems)}: not in the passage with a space before"
            raise InputError(f"{missing}; take them out of the category, or give another passage")
        return base.Prepared(self.kind, (tuple(ids),), ((),), (display,), display, targets=targets)


def first_token(tokenizer: base.Tokenizer, word: str) -> int:
    """The id of the first token of a word that has a space before it.

    The space stands inside a text here, since some tokenizers put one more at the start.
    """
    before, whole = token_ids(tokenizer, ["a", f"a {word}"])
    return whole[len(before)]
