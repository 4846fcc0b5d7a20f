import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from palinka.analyses.stimuli import base
from palinka.errors import InputError

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
        pool: The token that is the item: the `target`, or the one `before` it, which predicts it.
    """

    targets: Mapping[str, str]
    frames: Sequence[str] | None = None
    sentences: Mapping[str, Sequence[str]] | None = None
    pool: Literal["target", "before"] = "target"

    def __post_init__(self) -> None:
        if len(self.targets) < 2:
            raise InputError(f"targets: {len(self.targets)} condition; a contrast needs two")
        for name, target in self.targets.items():
            base.check_trimmed([target], f"targets.{name}")
        if (self.frames is None) == (self.sentences is None):
            raise InputError("frames, sentences: give exactly one of the two")
        if self.sentences is not None and self.sentences.keys() != self.targets.keys():
            given, expected = ", ".join(self.sentences), ", ".join(self.targets)
            raise InputError(f"sentences: conditions {given}; expected {expected}, as in targets")
        if self.frames is not None and self.pool == "before":
            fault = "pool: before, where the conditions of a frame have the same words"
            raise InputError(f"{fault} and no unit can differ; give sentences, or pool: target")
        for index, frame in enumerate(self.frames or ()):
            if (times := frame.count(SLOT)) != 1:
                raise InputError(f"frames[{index}]: {frame!r} has {SLOT} {times} times; give one")
        item = "frame" if self.sentences is None else "sentence"
        base.check_counts(self._texts(), f"{item}s", item)

    def _texts(self) -> dict[str, Sequence[str]]:
        if self.sentences is not None:
            return {name: self.sentences[name] for name in self.targets}
        frames, targets = self.frames or (), self.targets.items()
        return {name: [frame.replace(SLOT, word) for frame in frames] for name, word in targets}

    def _prepare(self, tokenizer: base.Tokenizer) -> base.Prepared:
        conditions, texts = base.by_item(self._texts())
        targets = [self.targets[name] for name in conditions]
        found = [
            [match.span() for match in re.finditer(rf"(?<!\w){re.escape(target)}(?!\w)", text)]
            for target, text in zip(targets, texts, strict=True)
        ]
        spans = [each[0] if each else (0, 0) for each in found]
        tokens, pool, made = base.tokens_at(tokenizer, texts, spans)
        problems: dict[tuple[str, ...], str] = {}  # one for each text, or for each target's tokens
        parts = zip(conditions, targets, texts, found, made, strict=True)
        for name, target, text, each, pieces in parts:
            if len(each) != 1:
                problem = f"{target!r} occurs {len(each)} times; it must occur exactly once"
                problems[name, text] = f"{name}: {text!r}: {problem}"
            elif pieces != (expected := [f" {target}"]):
                problem = f"the tokenizer makes {pieces} of {target!r}; expected {expected}"
                problems.setdefault((name, *pieces), f"{name}: {text!r}: {problem}")
        if problems:
            raise InputError(base.join_problems(list(problems.values())))
        if self.pool == "before":
            pool = [[at[0] - 1] for at in pool]
        labels = [
            f"{text[:start]}[{text[start:stop]}]{text[stop:]}"
            for text, (start, stop) in zip(texts, spans, strict=True)
        ]
        pairs = self.frames is not None
        return base.prepared_items(self.kind, tokenizer, tokens, pool, labels, conditions, pairs)
