"""Every occurrence of some strings in a long text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from palinka.analyses.stimuli import base
from palinka.errors import InputError, escape_control_chars
from palinka.language_models.token_text import token_ids, token_texts


@dataclass(frozen=True)
class Match:
    """Rule for which tokens belong to a condition.

    Attributes:
        match: The strings that a token, decoded and stripped of white space, may equal.
        not_in_numbers: Leave out a token beside a digit, as the point in `3.5`: the last
            character of the token before it or the first of the one after it.
    """

    match: Sequence[str]
    not_in_numbers: bool = False


@dataclass(frozen=True)
class Occurrences(base.Stimuli):
    """Tokens of a long text that equal a string, each in a window cut from the text.

    The matching token is the item. A match without a full window does not count.

    Attributes:
        text: The text.
        conditions: The rule of each condition; no two match the same string.
        before: Number of tokens of the window before the match.
        after: Number of tokens after it.
        limit: Maximum number of matches per condition, the first in the text; None for all.
        skip: Number of tokens at the start of the text that are left out, also of windows.
    """

    text: str
    conditions: Mapping[str, Match]
    before: int
    after: int
    limit: int | None = None
    skip: int = 0

    def __post_init__(self) -> None:
        if not self.conditions:
            raise InputError("conditions: empty; name at least one, with the strings to match")
        taken: dict[str, str] = {}
        for name, condition in self.conditions.items():
            key = f"conditions.{name}.match"
            if not condition.match:
                raise InputError(f"{key}: empty; give at least one string")
            base.check_trimmed(condition.match, key)
            for string in condition.match:
                if (other := taken.setdefault(string, name)) != name:
                    raise InputError(f"{key}: {string!r} already belongs to the condition {other}")
        least = {"before": 0, "after": 0, "skip": 0, "limit": base.MIN_ITEMS}
        for key, minimum in least.items():
            if (value := getattr(self, key)) is not None and value < minimum:
                raise InputError(f"{key}: {value}; give at least {minimum}")

    def _prepare(self, tokenizer: base.Tokenizer) -> base.Prepared:
        ids = np.array(token_ids(tokenizer, [self.text])[0][self.skip :], dtype=np.int64)
        vocabulary, of_vocabulary = np.unique(ids, return_inverse=True)
        texts = token_texts(tokenizer, vocabulary.tolist(), "replace")  # each kind of token once
        digits = np.array([[text[-1:].isdigit(), text[:1].isdigit()] for text in texts], dtype=bool)
        after_digit, before_digit = digits.reshape(-1, 2)[of_vocabulary].T
        beside_digit = np.zeros(len(ids), dtype=bool)
        beside_digit[1:] |= after_digit[:-1]
        beside_digit[:-1] |= before_digit[1:]
        index = np.arange(len(ids))
        usable = (index >= self.before) & (index < len(ids) - self.after)
        tokens, labels, conditions, matches = [], [], [], {}
        for name, condition in self.conditions.items():
            equal = np.array([text.strip() in condition.match for text in texts], dtype=bool)
            hits = usable & equal[of_vocabulary]
            if condition.not_in_numbers:
                hits &= ~beside_digit
            matches[escape_control_chars(name)] = int(hits.sum())
            positions = np.flatnonzero(hits)[: self.limit].tolist()
            if len(positions) < base.MIN_ITEMS:
                found = f"{len(positions)} matches with a full window in {len(ids)} tokens"
                needed = f"at least {base.MIN_ITEMS}: give a longer text or a smaller window"
                raise InputError(f"conditions.{name}: {found}; needs {needed}")
            for position in positions:
                window = ids[position - self.before : position + self.after + 1].tolist()
                tokens.append(window)
                labels.append(base.marked(tokenizer, window, self.before))
                conditions.append(name)
        pool = [(self.before,)] * len(tokens)
        items = base.prepared_items(self.kind, tokenizer, tokens, pool, labels, conditions)
        return replace(items, matches=matches)
