"""Sentences that differ between conditions in one word."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from palinka.analyses.stimuli.base import (
    Encoded,
    Prepared,
    Stimuli,
    check_counts,
    check_trimmed,
    encode,
    listed,
    prepared_items,
)
from palinka.errors import InputError
from palinka.language_models.token_text import token_texts

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
        sentences: Instead of frames, the sentences of each condition.

    Raises:
        InputError: If there are fewer than two conditions or three sentences in one, both or
            neither of frames and sentences, or a frame without its slot.
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
        texts = self._texts()
        conditions = [name for name, sentences in texts.items() for _ in sentences]
        encoded = encode(tokenizer, [text for sentences in texts.values() for text in sentences])
        pool, labels, problems = [], [], []
        for condition, sentence in zip(conditions, encoded, strict=True):
            target = self.targets[condition]
            found = _find(sentence.text, target)
            problem = _problem(tokenizer, sentence, target, found)
            if problem:
                problems.append(f"{condition}: {sentence.text!r}: {problem}")
                continue
            ((start, stop),) = found
            pool.append(sentence.positions(start, stop))
            labels.append(f"{sentence.text[:start]}[{target}]{sentence.text[stop:]}")
        if problems:
            raise InputError(listed(problems))
        ids = [sentence.ids for sentence in encoded]
        pairs = self.frames is not None
        return prepared_items(self.kind, tokenizer, ids, pool, labels, conditions, pairs)


def _find(text: str, target: str) -> list[tuple[int, int]]:
    """Where a word stands in a text by itself."""
    return [match.span() for match in re.finditer(rf"(?<!\w){re.escape(target)}(?!\w)", text)]


def _problem(
    tokenizer: "PreTrainedTokenizerBase",
    sentence: Encoded,
    target: str,
    found: list[tuple[int, int]],
) -> str | None:
    """Why a sentence cannot be used, if it cannot."""
    if len(found) != 1:
        return f"{target!r} occurs {len(found)} times; it must occur exactly once"
    positions = sentence.positions(*found[0])
    made = token_texts(tokenizer, [sentence.ids[position] for position in positions])
    if made != [f" {target}"]:
        return f"the tokenizer makes {made} of {target!r}; expected [{f' {target}'!r}]"
    return None
