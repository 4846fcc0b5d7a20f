"""Stimuli from YAML files."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from inspect import signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from palinka.analyses.stimuli.base import Stimuli
from palinka.analyses.stimuli.carrier import Carrier
from palinka.analyses.stimuli.contrast import Contrast
from palinka.analyses.stimuli.occurrences import Occurrences
from palinka.analyses.stimuli.paired import Paired
from palinka.analyses.stimuli.passage import Passage
from palinka.analyses.stimuli.words import Words
from palinka.data import BundledSample
from palinka.errors import (
    InputError,
    did_you_mean,
    expanded,
    load_from_file,
    one_line,
    type_mismatch,
)
from palinka.language_models import LanguageModelSpec

KINDS = {cls.kind: cls for cls in (Contrast, Words, Carrier, Occurrences, Passage, Paired)}


class _TextBaseLoader(yaml.BaseLoader):
    """Loader of text, lists and mappings only, so that `no` and `3.5` stay words."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            names = [name.value for name, _ in node.value]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"line {node.start_mark.line + 1}: the key {twice!r} comes twice")
        return found


def load_stimuli(path: str | Path) -> Stimuli:
    """Read stimuli from a YAML file with a `kind`; `docs/stimuli.md` describes the six.

    A kind may also be a class of a Python file beside the YAML file, as in
    `kind: endings.py:Endings`. Where a kind has a `text`, it may be the text itself,
    `bundled_sample` for the sample written by the bundled mini model, or in another file that
    `file` names, relative to the YAML file's folder. `~` and environment variables are expanded in
    both paths. An `InputError` names the file and the key that does not fit.
    """
    file = expanded(path)
    text = _read_text(file)
    try:
        given = _parse(text)
        kind = _kind(str(given.pop("kind", "")), file.parent)
        if "file" in given and "text" in signature(kind).parameters:
            if "text" in given:
                raise InputError("text, file: both are given; give one of the two")
            given["text"] = _read_text(file.parent / expanded(given.pop("file")))
        elif given.get("text") == "bundled_sample":
            given["text"] = bundled_sample()
        return kind(**_arguments(kind, given), name=str(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def bundled_sample() -> str:
    """The sample that the bundled mini model wrote, as one text."""
    tokenizer = LanguageModelSpec("mini").tokenizer()
    tokens = [list(document) for document in BundledSample().documents()]
    return "\n\n".join(tokenizer.batch_decode(tokens))


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 at byte {error.start}; convert it") from error


def _parse(text: str) -> dict[str, Any]:
    try:
        given = yaml.load(text, Loader=_TextBaseLoader)  # noqa: S506 - builds no objects
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {one_line(error)}") from error
    if not isinstance(given, dict):
        raise InputError(f"{_shown(given)}; expected `kind:` and the keys of that kind")
    return given


def _kind(name: str, folder: Path) -> type[Stimuli]:
    cls = load_from_file(name, folder) if ".py:" in name else KINDS.get(name)
    if cls is None:
        given, hint = repr(name) if name else "missing", did_you_mean(name, KINDS)
        raise InputError(f"kind: {given}, expected a kind or FILE.py:CLASS{hint}")
    if not (isinstance(cls, type) and issubclass(cls, Stimuli)):
        raise InputError(f"kind: {name!r} is not a subclass of Stimuli")
    return cls


def _arguments(cls: type, given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Check the keys of a mapping against the fields of a dataclass, and convert the values."""
    hints = get_type_hints(cls)
    known = {n: p for n, p in signature(cls).parameters.items() if p.kind is not p.KEYWORD_ONLY}
    for name in given:
        if name not in known:
            names = [*known, "file"] if "text" in known else known
            raise InputError(f"{prefix}{name}: unknown key{did_you_mean(name, names)}")
    for name, parameter in known.items():
        if name not in given and parameter.default is parameter.empty:
            raise InputError(f"{prefix}{name}: missing; add this key")
    return {name: _typed(value, hints[name], prefix + name) for name, value in given.items()}


def _typed(value: Any, hint: Any, key: str) -> Any:
    """A value of YAML as a type hint requires it."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):  # with None, or of text and a list or keys
        choices = [each for each in arguments if each is not NoneType]
        return _typed(value, choices[0 if isinstance(value, str) else -1], key)
    is_record = isinstance(kind, type) and is_dataclass(kind)
    if isinstance(value, dict) and is_record:
        return kind(**_arguments(kind, value, f"{key}."))
    if isinstance(value, dict) and kind is Mapping:
        return {name: _typed(each, arguments[1], f"{key}.{name}") for name, each in value.items()}
    if isinstance(value, list) and kind is Sequence:
        return tuple(_typed(each, arguments[0], f"{key}[{i}]") for i, each in enumerate(value))
    plain = value
    if isinstance(value, str) and kind not in (str, Literal):
        with suppress(yaml.YAMLError, ValueError):
            plain = yaml.safe_load(value)
    expected = "a list" if kind is Sequence else type_mismatch(plain, hint)
    expected = "keys with values" if is_record or kind is Mapping else expected
    if expected is not None:
        raise InputError(f"{key}: {_shown(value)}; expected {expected}")
    return plain


def _shown(value: Any) -> str:
    if isinstance(value, str) and value:
        return repr(value)
    return "empty" if not value else "a list" if isinstance(value, list) else "keys with values"
