"""Base class of stimuli, their tokens and checks."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from palinka.errors import InputError, escape_control_chars
from palinka.language_models.token_text import joined_text, token_ids, token_texts, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MINIMUM_ITEMS = 3
_SHOWN = 8


def check_counts(conditions: Mapping[str, Sequence[str]], key: str, item: str) -> None:
    """See to it that there are conditions, each with items enough for a statistic.

    Args:
        conditions: Items by the name of their condition.
        key: What the file calls the conditions.
        item: What an item is called.

    Raises:
        InputError: If there is no condition, or one has fewer than three items.
    """
    if not conditions:
        raise InputError(f"{key}: empty; name at least one, with its {item}s")
    for name, items in conditions.items():
        if len(items) < MINIMUM_ITEMS:
            raise InputError(
                f"{key}.{name}: {len(items)} {item}{'s' * (len(items) != 1)}; a condition needs "
                f"at least {MINIMUM_ITEMS}"
            )


def check_words(conditions: Mapping[str, Sequence[str]], key: str) -> None:
    """See to it that there are conditions, with enough words in each.

    Raises:
        InputError: As `check_counts` and `check_trimmed` do.
    """
    check_counts(conditions, key, "word")
    for name, words in conditions.items():
        check_trimmed(words, f"{key}.{name}")


def check_trimmed(texts: Sequence[str], key: str) -> None:
    """See to it that texts are not blank and have no white space around them.

    Raises:
        InputError: Naming the first that is not so.
    """
    for index, text in enumerate(texts):
        if not text or text != text.strip():
            raise InputError(f"{key}[{index}]: {text!r}; give text without white space around it")


def listed(problems: Sequence[str]) -> str:
    """All problems in one line, or the first of them and how many more there are."""
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more


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
    """Tokenize texts as `token_text.tokenize` does, with the place of each token."""
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


_EXAMPLES = 5


@dataclass(frozen=True)
class Prepared:
    """Stimuli under one tokenizer; items are ordered by condition, then as the file has them.

    Attributes:
        kind: The kind of the stimuli.
        tokens: The token ids of each text, `(tokens,)` each, without special tokens.
        pool: For each text the positions whose mean is the item's vector; empty for a passage,
            where every token is an item.
        display: For each text its tokens as `token_texts` shows them.
        labels: What each item is called: the word, or the text with the target in brackets.
        conditions: The condition of each item, escaped; empty for a passage.
        targets: For a passage, by category (escaped), the tokens that belong to it.
        pairs: Whether item `i` of each condition matches item `i` of the others, as two versions
            of one frame do.
    """

    kind: str
    tokens: tuple[tuple[int, ...], ...]
    pool: tuple[tuple[int, ...], ...]
    display: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    conditions: tuple[str, ...] = ()
    targets: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    pairs: bool = False

    def summary(self) -> str:
        """How many items each condition has, with five of them, as markdown."""
        lines = []
        for name in dict.fromkeys(self.conditions):
            of_condition = [
                label
                for label, condition in zip(self.labels, self.conditions, strict=True)
                if condition == name
            ]
            lines.append(_entry(name, f"{len(of_condition)} items", of_condition))
        for name, mask in self.targets.items():
            hits = [label for label, hit in zip(self.labels, mask, strict=True) if hit]
            lines.append(_entry(name, f"{len(hits)} of {len(mask)} tokens", hits))
        return "\n".join(lines) or f"- {len(self.labels)} tokens"


def prepared_items(
    kind: str,
    tokenizer: "PreTrainedTokenizerBase",
    tokens: Sequence[Sequence[int]],
    pool: Sequence[Sequence[int]],
    labels: Sequence[str],
    conditions: Sequence[str],
    pairs: bool = False,
) -> Prepared:
    """Put one item per text together, with its tokens for display."""
    return Prepared(
        kind=kind,
        tokens=tuple(tuple(ids) for ids in tokens),
        pool=tuple(tuple(positions) for positions in pool),
        display=tuple(tuple(token_texts(tokenizer, ids)) for ids in tokens),
        labels=tuple(labels),
        conditions=tuple(map(escape_control_chars, conditions)),
        pairs=pairs,
    )


def marked(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], position: int) -> str:
    """The text of tokens with one, not a blank one, in brackets; its spaces stay outside."""
    target = token_texts(tokenizer, [ids[position]])[0]
    left, core, right = target.partition(target.strip())
    before = joined_text(tokenizer, ids[:position])
    after = joined_text(tokenizer, ids[position + 1 :])
    return f"{before}{left}[{core}]{right}{after}"


def _entry(name: str, count: str, items: Sequence[str]) -> str:
    examples = "".join(f"\n    - {code_span(item)}" for item in items[:_EXAMPLES])
    return f"- {code_span(name)}: {count}, such as{examples}"


def code_span(text: str) -> str:
    """Text as a span of code in markdown, in which nothing is markup, also within a table."""
    text = escape_control_chars(re.sub(r"\r\n|\r|\n", "↵", text))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}"


@dataclass(frozen=True)
class Stimuli(ABC):
    """Texts in which some tokens matter, under any tokenizer.

    Attributes:
        name: What messages call them, such as the file they come from; not part of the content.
    """

    kind: ClassVar[str]

    name: str = field(default="", kw_only=True, compare=False)

    @property
    def hash(self) -> str:
        """SHA-256 of the content: equal content, equal hash, whatever the file looks like."""
        content = {
            entry.name: _canonical(getattr(self, entry.name))
            for entry in fields(self)
            if entry.compare
        }
        line = json.dumps({"kind": self.kind} | content, sort_keys=True)
        return hashlib.sha256(line.encode()).hexdigest()

    def prepare(self, tokenizer: "PreTrainedTokenizerBase") -> Prepared:
        """Tokenize the texts and find the tokens that matter.

        Args:
            tokenizer: A fast tokenizer; no special tokens are put around a text.

        Raises:
            InputError: If the tokenizer is not a fast one, or a target is not what the kind asks
                for; names it, and says what the tokenizer made of it.
        """
        try:
            if not tokenizer.is_fast:
                raise InputError(
                    f"the tokenizer {type(tokenizer).__name__} does not say where its tokens stand"
                    " in the text; use a model with a tokenizer.json"
                )
            return self._prepare(tokenizer)
        except InputError as error:
            raise InputError(f"{self.name or f'{self.kind} stimuli'}: {error}") from error

    @abstractmethod
    def _prepare(self, tokenizer: "PreTrainedTokenizerBase") -> Prepared:
        """`prepare`, with errors that do not name the file."""


def _canonical(value: Any) -> Any:
    """Values for JSON; mappings as lists of pairs, since the order of conditions matters."""
    if isinstance(value, Mapping):
        return [[key, _canonical(entry)] for key, entry in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value
