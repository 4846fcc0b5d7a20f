"""Sentences that differ between conditions in one word."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from palinka.analyses.stimuli import base
from palinka.errors import InputError
from palinka.language_models.token_text import token_texts, tokenize

SLOT = "{target}"


@dataclass(frozen=True)
class Contrast(base.Stimuli):
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
            base.check_trimmed([target], f"targets.{name}")
        if (self.frames is None) == (self.sentences is None):
            raise InputError("frames, sentences: give exactly one of the two")
        if self.sentences is not None and self.sentences.keys() != self.targets.keys():
            given, expected = ", ".join(self.sentences), ", ".join(self.targets)
            raise InputError(
                f"sentences: conditions {given}; expected those of targets: {expected}"
            )
        for index, frame in enumerate(self.frames or ()):
            if (times := frame.count(SLOT)) != 1:
                raise InputError(
                    f"frames[{index}]: {frame!r} has {SLOT} {times} times; put it where the target"
                    " word goes, once"
                )
        item = "frame" if self.sentences is None else "sentence"
        base.check_counts(self._texts(), f"{item}s", item)

    def _texts(self) -> dict[str, list[str]]:
        """The sentences of each condition, in the order of `targets`."""
        if self.sentences is not None:
            return {name: list(self.sentences[name]) for name in self.targets}
        return {
            name: [frame.replace(SLOT, target) for frame in self.frames or ()]
            for name, target in self.targets.items()
        }

    def _prepare(self, tokenizer: base.Tokenizer) -> base.Prepared:
        items = [(name, text) for name, texts in self._texts().items() for text in texts]
        encoded = tokenize(tokenizer, [text for _, text in items], offsets=True)
        tokens, spans = encoded["input_ids"], encoded["offset_mapping"]
        pool, labels, problems = [], [], []
        for (name, text), ids, places in zip(items, tokens, spans, strict=True):
            target = self.targets[name]
            words = list(re.finditer(rf"(?<!\w){re.escape(target)}(?!\w)", text))
            if len(words) != 1:
                found = f"{target!r} occurs {len(words)} times; it must occur exactly once"
                problems.append(f"{name}: {text!r}: {found}")
                continue
            start, stop = words[0].span()
            pool.append(base.tokens_within(places, start, stop))
            labels.append(f"{text[:start]}[{target}]{text[stop:]}")
            made = token_texts(tokenizer, [ids[position] for position in pool[-1]])
            if made != [f" {target}"]:
                found = f"the tokenizer makes {made} of {target!r}; expected {[f' {target}']}"
                problems.append(f"{name}: {text!r}: {found}")
        if problems:
            raise InputError(base.join_problems(problems))
        conditions, pairs = [name for name, _ in items], self.frames is not None
        return base.prepared_items(self.kind, tokenizer, tokens, pool, labels, conditions, pairs)
