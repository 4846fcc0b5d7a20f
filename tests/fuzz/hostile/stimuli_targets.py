"""Texts: stimuli in YAML, and folders of text files."""

from pathlib import Path
from random import Random
from typing import Any

import yaml
from transformers import AutoTokenizer

from hostile.folders import change_folder
from hostile.target import Target
from hostile.texts import change_bytes, change_yaml
from palinka.analyses.stimuli import load_stimuli
from palinka.assets import mini_gpt2_folder
from palinka.data import TextFiles

TEXT = (
    "The road from Vienna to Budapest follows the Danube. Vienna, he said, is 3.5 miles, not far."
)
STIMULI: dict[str, dict[str, Any]] = {
    "contrast": {
        "targets": {"him": "him", "her": "her"},
        "frames": [f"Then {name} saw {{target}} there." for name in ("John", "Anne", "Mary")],
    },
    "sentences": {
        "kind": "contrast",
        "targets": {"a": "him", "b": "her"},
        "sentences": {"a": ["I saw him go."] * 3, "b": ["I saw her go."] * 3},
    },
    "words": {"conditions": {"animals": ["horse", "dog", "bird"], "food": ["soup", "x", "é"]}},
    "carrier": {
        "groups": {"a": ["house", "river", "road"]}, "carrier": "We saw the {word}", "pool": "mean",
    },
    "occurrences": {
        "text": TEXT * 6,
        "conditions": {"comma": {"match": [","], "not_in_numbers": True}},
        "before": 2, "after": 1, "limit": 4, "skip": 1,
    },
    "passage": {"file": "text.txt", "categories": {"cities": ["Vienna", "Budapest"]}},
}  # fmt: skip


class StimuliFile(Target):
    """A stimuli file, read and prepared with the bundled tokenizer."""

    name = "stimuli"

    def prepare(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(mini_gpt2_folder())
        (self.originals / "text.txt").write_text(TEXT)

    def change(self, random: Random, inside: Path) -> None:
        kind = random.choice(list(STIMULI))
        content = {"kind": kind, **STIMULI[kind]}
        file = inside / "stimuli.yaml"
        file.write_bytes(change_yaml(random, yaml.safe_dump(content, sort_keys=False).encode()))
        if random.random() < 0.1:
            change_folder(random, inside, inside.parent / "outside")
        elif random.random() < 0.1:
            text = inside / "text.txt"
            text.write_bytes(change_bytes(random, text.read_bytes()))

    def read(self, inside: Path) -> None:
        stimuli = load_stimuli(inside / "stimuli.yaml")
        # As the package does: the loader in Python differs.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        text = (inside / "stimuli.yaml").read_text(encoding="utf-8-sig")
        given = yaml.load(text, Loader=loader)  # noqa: S506
        meant = {key: value for key, value in given.items() if value is not None}
        assert meant.pop("kind") == stimuli.kind
        for key, value in meant.items():
            if key != "file" and value != "bundled_sample":
                assert _plain(getattr(stimuli, key)) == _plain(value), key
        stimuli.prepare(self.tokenizer)


def _plain(value: Any) -> Any:
    """Dataclasses as dicts without what was not given, tuples as lists."""
    if hasattr(value, "__dataclass_fields__"):
        value = {"not_in_numbers": False, **vars(value)}
    if isinstance(value, dict):
        plain = {key: _plain(entry) for key, entry in value.items()}
        return {"not_in_numbers": False, **plain} if "match" in plain else plain
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


class TextCorpus(Target):
    """A folder of text files."""

    name = "text files"

    def prepare(self) -> None:
        for name in ("a.txt", "b.txt"):
            (self.originals / name).write_text(f"{name}: {TEXT}\n")

    def change(self, random: Random, inside: Path) -> None:
        if random.random() < 0.3:
            change_folder(random, inside, inside.parent / "outside")
        else:
            file = inside / "b.txt"
            file.write_bytes(change_bytes(random, file.read_bytes()))

    def read(self, inside: Path) -> None:
        corpus = TextFiles(inside)
        for document in corpus.documents():
            assert document.text == (inside / document.name).read_text(encoding="utf-8-sig")
        corpus.fingerprint()
