"""Stimuli as a language model takes them: token ids, positions, labels."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from palinka.printable import printable
from palinka.stimuli.display import display_text, display_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EXAMPLES = 5


@dataclass(frozen=True)
class Prepared:
    """Stimuli under one tokenizer; items are ordered by condition, then as the file has them.

    Attributes:
        kind: The kind of the stimuli.
        tokens: The token ids of each text, `(tokens,)` each, without special tokens.
        pool: For each text the positions whose mean is the item's vector; empty for a passage,
            where every token is an item.
        display: For each text its tokens as `display_tokens` shows them.
        labels: What each item is called: the word, or the text with the target in brackets.
        conditions: The condition of each item, as `printable` writes it; empty for a passage.
        targets: For a passage, by category (also `printable`), which tokens belong to it.
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
        display=tuple(tuple(display_tokens(tokenizer, ids)) for ids in tokens),
        labels=tuple(labels),
        conditions=tuple(map(printable, conditions)),
        pairs=pairs,
    )


def marked(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], position: int) -> str:
    """The text of tokens with one, not a blank one, in brackets; its spaces stay outside."""
    target = display_tokens(tokenizer, [ids[position]])[0]
    left, core, right = target.partition(target.strip())
    before = display_text(tokenizer, ids[:position])
    after = display_text(tokenizer, ids[position + 1 :])
    return f"{before}{left}[{core}]{right}{after}"


def _entry(name: str, count: str, items: Sequence[str]) -> str:
    examples = "".join(f"\n    - {code_span(item)}" for item in items[:_EXAMPLES])
    return f"- {code_span(name)}: {count}, such as{examples}"


def code_span(text: str) -> str:
    """Text as a span of code in markdown, in which nothing is markup, also within a table."""
    text = printable(re.sub(r"\r\n|\r|\n", "↵", text))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}"
