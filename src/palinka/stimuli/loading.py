"""Stimuli from a YAML file."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import yaml

from palinka.corpora import BundledSample
from palinka.errors import InputError
from palinka.language_models import LanguageModelSpec
from palinka.ordinary_file import read_ordinary
from palinka.paths import expanded
from palinka.stimuli.carrier import Carrier
from palinka.stimuli.contrast import Contrast
from palinka.stimuli.occurrences import Occurrences
from palinka.stimuli.passage import Passage
from palinka.stimuli.reading import nearest, parse_mapping, read_fields, read_text
from palinka.stimuli.stimuli import Stimuli
from palinka.stimuli.words import Words

KINDS: dict[str, type[Stimuli]] = {
    cls.kind: cls for cls in (Contrast, Words, Carrier, Occurrences, Passage)
}
BUNDLED_SAMPLE = "bundled_sample"
# A long text belongs into a file of its own, which may be a library of books.
_LARGEST_YAML = 2**24
_LARGEST_TEXT = 2**28


def load_stimuli(path: str | Path) -> Stimuli:
    """Read stimuli from a YAML file with a `kind`; `docs/stimuli.md` describes the five.

    Where a kind has a `text`, the text itself may stand there, or `bundled_sample` for what the
    bundled mini model wrote; or a `file` may be named, relative to the YAML file's folder, with
    `~` and environment variables put in.

    Args:
        path: The file; `~` and environment variables are put in.

    Raises:
        InputError: If the file cannot be read, or is not what its kind asks for; names the file
            and the key.
    """
    file = expanded(path)
    content = _read_file(file, _LARGEST_YAML)
    try:
        given = parse_mapping(content)
        kind = _kind(given)
        has_text = "text" in (field.name for field in fields(kind))
        from_file = has_text and "file" in given
        others = ("kind", "file") if has_text else ("kind",)
        arguments = read_fields(_with_text(given) if from_file else given, kind, also=others)
        if from_file:
            arguments["text"] = _read_file(file.parent / expanded(arguments["text"]), _LARGEST_TEXT)
        elif arguments.get("text") == BUNDLED_SAMPLE:
            arguments["text"] = bundled_sample()
        return kind(**arguments, name=str(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def bundled_sample() -> str:
    """The sample that the bundled mini model wrote, as one text."""
    tokenizer = LanguageModelSpec("mini").tokenizer()
    documents = [document.tokens for document in BundledSample().documents()]
    texts = tokenizer.batch_decode([tokens.tolist() for tokens in documents if tokens is not None])
    return "\n\n".join(texts)


def _kind(given: Mapping[str, yaml.Node]) -> type[Stimuli]:
    if "kind" not in given:
        raise InputError(f"kind: missing; give one of {', '.join(KINDS)}")
    kind = read_text(given["kind"], "kind")
    if kind not in KINDS:
        line = given["kind"].start_mark.line + 1
        raise InputError(f"kind (line {line}): {kind!r}{nearest(kind, list(KINDS))}")
    return KINDS[kind]


def _with_text(given: Mapping[str, yaml.Node]) -> dict[str, yaml.Node]:
    """The entries with the name of the file where the text would stand."""
    if "text" in given:
        raise InputError("text, file: both are given; give one of the two")
    read_text(given["file"], "file")
    return {"text" if key == "file" else key: node for key, node in given.items()}


def _read_file(file: Path, largest: int) -> str:
    r"""The text of a file, with line ends as `\n` and without a byte order mark."""
    try:
        text = read_ordinary(file, largest).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not UTF-8 (byte {error.start} cannot be decoded); convert it"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
