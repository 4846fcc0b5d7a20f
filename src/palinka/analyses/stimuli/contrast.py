"""Sentences that differ between conditions in one word."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from palinka.analyses.stimuli.base import (
    Prepared,
    Stimuli,
    check_counts,
    check_trimmed,
    join_problems,
    prepared_items,
    tokens_within,
)
from palinka.errors import InputError
from palinka.language_models.token_text import token_texts, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLOT = "{target}"


@dataclass(frozen=True)
class Contrast(Stimuli):
    """A target word per condition, in common frames or in sentences of each condition's own.

    The token of the target word, with the space before it, is the item.

    Attributes:
        targets: The target word of each of two or more conditions.
        frames: Sentences in which `{target}` stands once; every condition gets them all, so item
            `i` of one condition and item `i` of the other are a pair.
        sentences: Instead of frames, the sentences of each condition, at least three.
    """

    kind: ClassVar[str] = "contrast"

    targets: Mapping[str, str]
    frames: Sequence[str] | None = None
    sentences: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        if len(self.targets) < 2:
            raise InputError(f"targets: {len(self.targets)} condition; a contrast needs two")
        for name, target in self.targets.items():
            check_trimmed([target], f"targets.{name}")
        if (self.frames is None) == (self.sentences is None):
            raise InputError("frames, sentences: give exactly one of the two")
        if self.sentences is not None and self.sentences.keys() != self.targets.keys():
            raise InputError(
                f"sentences: conditions {', '.join(self.sentences)}; expected those of targets: "
                f"{', '.join(self.targets)}"
            )
        for index, frame in enumerate(self.frames or ()):
            if frame.count(SLOT) != 1:
                raise InputError(
                    f"frames[{index}]: {frame!r} has {SLOT} {frame.count(SLOT)} times; put it "
                    "where the target word goes, once"
                )
        what = "frame" if self.sentences is None else "sentence"
        check_counts(self._texts(), what + "s", what)

    def _texts(self) -> dict[str, list[str]]:
        """The sentences of each condition, in the order of `targets`."""
        if self.sentences is not None:
            return {name: list(self.sentences[name]) for name in self.targets}
        return {
            name: [frame.replace(SLOT, target) for frame in self.frames or ()]
            for name, target in self.targets.items()
        }

    def _prepare(self, tokenizer: "PreTrainedTokenizerBase") -> Prepared:
        by_condition = self._texts()
        conditions = [name for name, texts in by_condition.items() for _ in texts]
        texts = [text for texts in by_condition.values() for text in texts]
        encoded = tokenize(tokenizer, texts, offsets=True)
        pool, labels, problems = [], [], []
        for condition, text, ids, spans in zip(
            conditions, texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            target = self.targets[condition]
            words = list(re.finditer(rf"(?<!\w){re.escape(target)}(?!\w)", text))
            if len(words) != 1:
                problems.append(
                    f"{condition}: {text!r}: {target!r} occurs {len(words)} times; it must occur "
                    "exactly once"
                )
                continue
            start, stop = words[0].span()
            positions = tokens_within(spans, start, stop)
            made = token_texts(tokenizer, [ids[position] for position in positions])
            if made != [f" {target}"]:
                problems.append(
                    f"{condition}: {text!r}: the tokenizer makes {made} of {target!r}; expected "
                    f"[{f' {target}'!r}]"
                )
            pool.append(positions)
            labels.append(f"{text[:start]}[{target}]{text[stop:]}")
        if problems:
            raise InputError(join_problems(problems))
        tokens, pairs = encoded["input_ids"], self.frames is not None
        return prepared_items(self.kind, tokenizer, tokens, pool, labels, conditions, pairs)
