"""Stimuli from YAML files."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import yaml

from palinka.analyses.stimuli.base import Stimuli
from palinka.analyses.stimuli.carrier import Carrier
from palinka.analyses.stimuli.contrast import Contrast
from palinka.analyses.stimuli.occurrences import Occurrences
from palinka.analyses.stimuli.passage import Passage
from palinka.analyses.stimuli.words import Words
from palinka.data import BundledSample
from palinka.errors import InputError, UnboundedError, check_bounds, expanded, read_ordinary
from palinka.language_models import LanguageModelSpec

_TAG = "tag:yaml.org,2002:"
_MOST_VALUES = 1_000_000
_SHOWN = 200
_SURROGATE = re.compile("[\ud800-\udfff]")
_MEANINGS = {
    "bool": "a truth value",
    "int": "a number",
    "float": "a number",
    "null": "nothing",
    "timestamp": "a date",
}


def parse_mapping(text: str) -> dict[str, yaml.Node]:
    """The entries of a YAML document that is a mapping.

    Raises:
        InputError: If the text is not YAML, or no mapping with text for keys.
    """
    try:
        check_bounds(text, _MOST_VALUES)
        # The loader in C, ten times as fast, where PyYAML has it.
        node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except UnboundedError as error:
        raise InputError(f"{error}; see the example of each kind") from error
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {' '.join(str(error).split())}") from error
    if node is None:
        raise InputError("empty; expected `kind:` and the keys of that kind")
    return entries(node, "the file")


def entries(node: yaml.Node, key: str) -> dict[str, yaml.Node]:
    """The values of a mapping by key, in the order of the file.

    Raises:
        InputError: If the node is no mapping, or has a key that is no text or comes twice.
    """
    if not isinstance(node, yaml.MappingNode) or node.tag != _TAG + "map":
        _refuse(node, key, f"{_shown(node)}; expected keys with values, such as `name: …`")
    found: dict[str, yaml.Node] = {}
    for name_node, value in node.value:
        name = _text(name_node, f"{key}: a key")
        if name in found:
            _refuse(name_node, key, f"the key {name!r} comes twice")
        found[name] = value
    return found


def read_fields(
    given: Mapping[str, yaml.Node], cls: type, key: str = "", also: Iterable[str] = ()
) -> dict[str, Any]:
    """The arguments for a dataclass.

    Args:
        given: Nodes by key.
        cls: The dataclass; its type hints say what each key must hold.
        key: Where in the file this is, for messages.
        also: Keys that are valid but read elsewhere.

    Raises:
        InputError: If a key is unknown, missing or of the wrong type.
    """
    hints = get_type_hints(cls)
    wanted = [field for field in fields(cls) if not field.kw_only]
    prefix = f"{key}." if key else ""
    names = [*also, *(field.name for field in wanted)]
    for name, node in given.items():
        if name not in names:
            _refuse(node, prefix + name, f"there is no such key{nearest(name, names)}")
    for field in wanted:
        needed = field.default is MISSING and field.default_factory is MISSING
        if needed and field.name not in given:
            raise InputError(f"{prefix}{field.name}: missing; add this key")
    return {
        field.name: _read(given[field.name], hints[field.name], prefix + field.name)
        for field in wanted
        if field.name in given
    }


def read_text(node: yaml.Node, key: str) -> str:
    """A text that is not empty.

    Raises:
        InputError: If the node is anything else.
    """
    text = _text(node, key)
    if not text.strip():
        _refuse(node, key, "empty; expected text")
    return text


def nearest(given: str, names: Sequence[str]) -> str:
    """What to say after an unknown name: the nearest, or all that there are."""
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; choose from {', '.join(names)}"


def _read(node: yaml.Node, hint: Any, key: str) -> Any:
    """A value of the type that `hint` says."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if NoneType in arguments:
        (inner,) = (argument for argument in arguments if argument is not NoneType)
        return _read(node, inner, key)
    if kind is Mapping:
        if not (given := entries(node, key)):
            _refuse(node, key, "empty; expected at least one entry")
        return {name: _read(value, arguments[1], f"{key}.{name}") for name, value in given.items()}
    if kind is Sequence:
        if not isinstance(node, yaml.SequenceNode) or node.tag != _TAG + "seq":
            _refuse(node, key, f"{_shown(node)}; expected a list, such as `[one, two]`")
        if not node.value:
            _refuse(node, key, "empty; expected at least one entry")
        return tuple(
            _read(value, arguments[0], f"{key}[{index}]") for index, value in enumerate(node.value)
        )
    if kind is Literal:
        text = read_text(node, key)
        if text not in arguments:
            _refuse(node, key, f"{text!r}{nearest(text, arguments)}")
        return text
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return kind(**read_fields(entries(node, key), kind, key))
    if kind is str:
        return read_text(node, key)
    value = _constructed(node)
    if type(value) is not kind:
        example = "true or false" if kind is bool else "a whole number"
        _refuse(node, key, f"{_shown(node)}; expected {example}")
    return value


def _constructed(node: yaml.Node) -> Any:
    """What YAML makes of a number or a truth value; nothing where its tag does not fit it."""
    if not isinstance(node, yaml.ScalarNode) or node.tag not in (_TAG + "bool", _TAG + "int"):
        return None
    try:
        return yaml.safe_load(node.value)
    except (ValueError, yaml.YAMLError):  # more digits than Python reads, or a tag like `!!int x`
        return None


def _text(node: yaml.Node, key: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        _refuse(node, key, f"{_shown(node)}; expected text: put it in quotes if that is what it is")
    if node.tag != _TAG + "str":
        meaning = _MEANINGS.get(node.tag.removeprefix(_TAG))
        if not node.value:
            _refuse(node, key, "empty; expected text")
        if meaning is None:
            _refuse(node, key, f"the tag {node.tag!r}; expected text")
        _refuse(
            node,
            key,
            f"YAML reads {node.value} as {meaning}; expected text: put it in quotes, "
            f"'{node.value}'",
        )
    value: str = node.value
    if _SURROGATE.search(value):
        _refuse(node, key, f"{value!r} holds half of a character; write the whole character")
    return value


def _shown(node: yaml.Node) -> str:
    """A node in a few words."""
    if isinstance(node, yaml.ScalarNode):
        value = node.value if len(node.value) <= _SHOWN else f"{node.value[:_SHOWN]}…"
        return repr(value) if value else "empty"
    kind = "a list" if isinstance(node, yaml.SequenceNode) else "keys with values"
    return kind if node.tag in (_TAG + "seq", _TAG + "map") else f"{kind} tagged {node.tag!r}"


def _refuse(node: yaml.Node, key: str, problem: str) -> NoReturn:
    raise InputError(f"{key} (line {node.start_mark.line + 1}): {problem}")


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
