"""Base class of stimuli, their tokens and checks."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from palinka.errors import InputError, escape_control_chars
from palinka.language_models.token_text import joined_text, token_texts, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenizer: TypeAlias = "PreTrainedTokenizerBase"
MIN_ITEMS = 3


def check_counts(conditions: Mapping[str, Sequence[str]], key: str, item: str) -> None:
    """Check that there are conditions, each with at least three items of the name `item`."""
    if not conditions:
        raise InputError(f"{key}: empty; name at least one, with its {item}s")
    for name, items in conditions.items():
        if (count := len(items)) < MIN_ITEMS:
            raise InputError(f"{key}.{name}: expected at least {MIN_ITEMS} {item}s, not {count}")


def check_words(conditions: Mapping[str, Sequence[str]], key: str) -> None:
    """Check that there are conditions, each with at least three words."""
    check_counts(conditions, key, "word")
    for name, words in conditions.items():
        check_trimmed(words, f"{key}.{name}")


def check_trimmed(texts: Sequence[str], key: str) -> None:
    """Check that no text is blank or has white space around it."""
    for index, text in enumerate(texts):
        if not text or text != text.strip():
            raise InputError(f"{key}[{index}]: {text!r}; give text without white space around it")


def join_problems(problems: Sequence[str], most: int = 8) -> str:
    """The first problems in one line, each once, and the number of the others."""
    problems = list(dict.fromkeys(problems))
    more = len(problems) - most
    return "; ".join(problems[:most]) + (f"; and {more} more" if more > 0 else "")


def by_item(conditions: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """The condition of each text, and the texts, in order."""
    pairs = [(name, text) for name, texts in conditions.items() for text in texts]
    return tuple(zip(*pairs, strict=True))


def tokens_at(
    tokenizer: Tokenizer, texts: Sequence[str], spans: Sequence[tuple[int, int]]
) -> tuple[list[list[int]], list[list[int]], list[list[str]]]:
    """Tokens of each text, and the positions and texts of those in its span of characters."""
    encoded = tokenize(tokenizer, texts, offsets=True)
    pool = [
        [at for at, (first, end) in enumerate(places) if first < stop and end > start]
        for places, (start, stop) in zip(encoded["offset_mapping"], spans, strict=True)
    ]
    tokens = encoded["input_ids"]
    made = [[ids[at] for at in chosen] for ids, chosen in zip(tokens, pool, strict=True)]
    return tokens, pool, [token_texts(tokenizer, ids) for ids in made]


@dataclass(frozen=True)
class Prepared:
    """Stimuli under one tokenizer; items are ordered by condition, then as the file has them.

    Attributes:
        kind: The kind of the stimuli.
        tokens: The token ids of each text, `(tokens,)` each, without special tokens.
        pool: For each text the positions whose mean is the item's vector; empty for a passage,
            where every token is an item.
        display: For each text its tokens as `token_texts` shows them.
        labels: Name of each item: the word, or the text with the target in brackets.
        conditions: The condition of each item, its control characters escaped; empty for a
            passage.
        targets: For a passage, the mask of each category's tokens, by the category's escaped name.
        pairs: Item `i` of each condition matches item `i` of the others, as two versions of one
            frame do.
        matches: For occurrences, the number of matches in the text, by condition.
    """

    kind: str
    tokens: tuple[tuple[int, ...], ...]
    pool: tuple[tuple[int, ...], ...]
    display: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    conditions: tuple[str, ...] = ()
    targets: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    pairs: bool = False
    matches: Mapping[str, int] = field(default_factory=dict)

    @property
    def by_condition(self) -> dict[str, list[tuple[int, ...]]]:
        """The token ids of the texts of each condition; of a passage, under `""`."""
        names = self.conditions or ("",) * len(self.tokens)
        every = list(zip(names, self.tokens, strict=True))
        return {name: [ids for of, ids in every if of == name] for name in names}

    def summary(self) -> str:
        """Number of items of each condition and five of them, as markdown."""
        names = dict.fromkeys(self.conditions)
        of_items = {name: [each == name for each in self.conditions] for name in names}
        masks: Mapping[str, Sequence[bool]] = self.targets or of_items
        lines = []
        for name, mask in masks.items():
            hits = [label for label, hit in zip(self.labels, mask, strict=True) if hit]
            count = f"{len(hits)} of {len(mask)} tokens" if self.targets else f"{len(hits)} items"
            if name in self.matches:
                count += f", the first of {self.matches[name]:,} matches"
            lines.append(f"- {code_span(name)}: {count}, such as")
            lines += [f"    - {code_span(hit)}" for hit in hits[:5]]
        return "\n".join(lines) or f"- {len(self.labels)} tokens"


def prepared_items(
    kind: str, tokenizer: Tokenizer, tokens: Sequence[Sequence[int]],
    pool: Sequence[Sequence[int]], labels: Sequence[str], conditions: Sequence[str],
    pairs: bool = False,
) -> Prepared:  # fmt: skip
    """Prepared stimuli with one item per text."""
    display = tuple(tuple(token_texts(tokenizer, ids)) for ids in tokens)
    names, ids = tuple(map(escape_control_chars, conditions)), tuple(map(tuple, tokens))
    return Prepared(kind, ids, tuple(map(tuple, pool)), display, tuple(labels), names, pairs=pairs)


def marked(tokenizer: Tokenizer, ids: Sequence[int], position: int) -> str:
    """The text of tokens with one in brackets; its spaces stay outside, unless it is blank."""
    target = token_texts(tokenizer, [ids[position]])[0]
    left, core, right = target.partition(target.strip() or target)
    before = joined_text(tokenizer, ids[:position])
    after = joined_text(tokenizer, ids[position + 1 :])
    return f"{before}{left}[{core}]{right}{after}"


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
        kind: Name of the kind, part of the hash; by default that of the class.
        name: Name in messages, such as the file they come from; not part of the content.
    """

    kind: ClassVar[str]

    name: str = field(default="", kw_only=True, compare=False)

    def __init_subclass__(cls) -> None:
        cls.kind = vars(cls).get("kind", cls.__name__.lower())

    @property
    def hash(self) -> str:
        """SHA-256 of the content, which does not depend on the layout of the file."""
        content = {each.name: getattr(self, each.name) for each in fields(self) if each.compare}
        # The order of conditions matters.
        content = {n: list(v.items()) if isinstance(v, Mapping) else v for n, v in content.items()}
        content["kind"] = self.kind
        line = json.dumps(content, sort_keys=True, default=asdict)
        return hashlib.sha256(line.encode()).hexdigest()

    def prepare(self, tokenizer: Tokenizer) -> Prepared:
        """Tokenize the texts, without special tokens, and find the tokens that matter.

        An `InputError` names each target whose tokens are not those that the kind needs.
        """
        with self._checked(tokenizer):
            return self._prepare(tokenizer)

    @contextmanager
    def _checked(self, tokenizer: Tokenizer) -> Iterator[None]:
        """Check the tokenizer, and name these stimuli in each `InputError` of the block."""
        try:
            if not tokenizer.is_fast:
                given = f"{type(tokenizer).__name__} gives no positions of its tokens in the text"
                raise InputError(f"the tokenizer {given}; use a model with a tokenizer.json")
            yield
        except InputError as error:
            raise InputError(f"{self.name or f'{self.kind} stimuli'}: {error}") from error

    @abstractmethod
    def _prepare(self, tokenizer: Tokenizer) -> Prepared:
        """`prepare`, with errors that do not name the file."""
