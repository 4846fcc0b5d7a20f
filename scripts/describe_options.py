"""Write `src/palinka/cli/options.json`: the options of every command.

    python scripts/describe_options.py

`palinka.cli.options` checks command lines against it and prints their help before torch is
imported. A test holds the file to the parsers.
"""

import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from palinka.cli.commands import COMMANDS, parser_of, target_of
from palinka.cli.fit import PalinkaCLI
from palinka.cli.options import PACKAGES

OUTPUT = Path(__file__).parent.parent / "src" / "palinka" / "cli" / "options.json"
PLAIN = {int: "int", float: "float", bool: "bool", str: "str", Path: "str", type(None): "null"}
# Options whose classes are described with their arguments; of others any name is accepted.
DESCRIBED = {
    "analyses", "data.corpus", "data.language_model", "language_model", "model.autoencoder",
    "model.lr_scheduler", "model.optimizer", "trainer.callbacks", "trainer.logger",
}  # fmt: skip
# Base classes and what palinka adds by itself.
HIDDEN = {
    "Autoencoder", "Callback", "CheckMonitors", "Checkpoint", "Corpus", "DummyLogger",
    "EndOfRunCallback", "EveryNSteps", "FinalWeights", "LRScheduler", "Logger", "Optimizer",
    "ProgressBar", "RunLogger", "SaveConfig", "SaveConfigCallback", "SingleModelCallback",
    "SweepFindings", "VariantLogger",
}  # fmt: skip
# In place of Lightning's descriptions, which are longer.
HELP = {
    "ckpt_path": "A checkpoint to resume or measure, or `last`",
    "seed_everything": "Seed of all random numbers; false for none",
    "weights_only": "Load only tensors and plain values from checkpoints",
}
LINKED = {"params", "optimizer", "input_dim", "output_dim"}


def describe() -> dict[str, dict[str, Any]]:
    """Describe the options by command and section, and the arguments of classes by option."""
    parts = ("commands", "sections", "summaries", "classes")
    found: dict[str, dict[str, Any]] = {part: {} for part in parts}
    of_lightning = dict(_ParsersAlone([])._subcommand_parsers)
    for command, (does, _) in COMMANDS.items():
        lightning = command in of_lightning
        parser = of_lightning.get(command) or parser_of(command, target_of(command))
        description = (parser.description or "").strip()
        if lightning:
            description = f"{does[0].upper()}{does[1:]}."
        own: dict[str, Any] = {"description": description, "sections": []}
        for name, entry, hint in _options(parser):
            if lightning and name in HELP:
                entry["help"] = HELP[name]
            section = name.partition(".")[0] if "." in name else ""
            place = found["sections"].setdefault(section, {}) if section else own
            place[name] = entry
            if section and section not in own["sections"]:
                own["sections"].append(section)
            if name in DESCRIBED and "class" in entry["type"]:
                kinds = sorted(_classes(hint), key=_by_name)
                found["classes"][name] = {
                    kind.__name__: {n: e for n, e, _ in _arguments(kind) if n not in LINKED}
                    for kind in kinds
                }
                docs = {kind.__name__: (kind.__doc__ or "").strip() for kind in kinds}
                summaries = found["summaries"].setdefault("classes", {})
                summaries |= {n: _first_sentence(doc) for n, doc in docs.items()}
        found["commands"][command] = own
    return found


class _ParsersAlone(PalinkaCLI):
    """Builds the parsers of Lightning's commands and stops."""

    def parse_arguments(self, parser: ArgumentParser, args: Any) -> None:
        self.config = Namespace({"subcommand": None})  # type: ignore[no-untyped-call]

    def _set_seed(self) -> None:
        pass

    _parse_ckpt_path = instantiate_classes = _set_seed


def _options(parser: ArgumentParser) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Name, description and type hint of every option that takes a value."""
    for action in parser._actions:
        hint = getattr(action, "_typehint", action.type) or (None if action.option_strings else str)
        flag = type(action).__name__ == "_StoreTrueAction"
        if not flag and (hint is None or "Help" in type(action).__name__):
            continue
        kinds = ["flag"] if flag else _kinds(hint)
        default = getattr(action.default, "class_path", action.default)
        if isinstance(default, dict):
            default = default.get("class_path")
        entry: dict[str, Any] = {"type": kinds}
        if not action.option_strings:
            entry["positional"] = "several" if action.nargs == "*" else "one"
        if action.required and default is None and action.nargs != "*":
            entry["required"] = True
        elif default is None or isinstance(default, bool | int | float | str):
            entry["default"] = default
            if default is None and "null" not in kinds:
                kinds.append("null")
        if text := _first_sentence(action.help or ""):
            entry["help"] = text
        yield action.dest, entry, hint


def _first_sentence(text: str) -> str:
    """First sentence of a docstring on one line, without reStructuredText."""
    text = " ".join(text.partition("\n\n")[0].split()).replace("``", "`")
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text)
    text = re.sub(r"`([^`<]*[^`< ]) *(<[^>]*>)?`_+", r"\1", text)
    return re.split(r"\.\s+(?=[A-Z])", text)[0].rstrip(".:")


@cache
def _arguments(kind: type) -> list[tuple[str, dict[str, Any], Any]]:
    parser = ArgumentParser()
    parser.add_class_arguments(kind, fail_untyped=False)
    return list(_options(parser))


def _kinds(hint: Any) -> list[Any]:
    """Names of plain types, lists of choices, `class` and `any`."""
    if hint in PLAIN:
        return [PLAIN[hint]]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return [list(inner)]
    if origin in (Union, types.UnionType):
        found: list[Any] = []
        for each in inner:
            if each is not Tensor:
                found += [kind for kind in _kinds(each) if kind not in found]
        # Python keeps one object for `int | float` and `float | int`, whichever came first.
        order = [*PLAIN.values()]
        return sorted(found, key=lambda kind: order.index(kind) if kind in order else -1)
    if origin is Callable or (inspect.isclass(hint) and (is_dataclass(hint) or classes_of(hint))):
        return ["class"]
    nested = [kind for each in inner for kind in _kinds(each)]
    return ["class"] if origin is not dict and "class" in nested else ["any"]


def classes_of(hint: Any) -> dict[str, type]:
    """Classes that a type hint allows, by name; palinka's go before Lightning's namesakes."""
    bases = [t for t in (hint, *get_args(hint)) if isinstance(t, type) and _has_subclasses(t)]
    found = [c for base in bases for c in _concrete_subclasses(base)]
    return {c.__name__: c for c in sorted(found, key=lambda c: c.__module__)}


def _has_subclasses(kind: type) -> bool:
    plain = kind.__module__ in sys.stdlib_module_names or is_dataclass(kind)
    return not plain and bool(kind.__subclasses__())


def _concrete_subclasses(base: type) -> set[type]:
    found: set[type] = set() if inspect.isabstract(base) else {base}
    children: list[type] = base.__subclasses__()
    return found.union(*(_concrete_subclasses(child) for child in children))


def _by_name(kind: type) -> tuple[str, int]:
    """Order by name; of several with one name palinka's, else Lightning's, comes last and stays."""
    return kind.__name__, -PACKAGES.index(f"{kind.__module__.partition('.')[0]}.")


def _classes(hint: Any) -> set[type]:
    """Classes that a type hint accepts, or that a callable may return."""
    found: set[type] = set()
    for each in (hint, *get_args(hint)):
        if get_origin(each) is Callable:
            returned = get_args(each)[1]
            for base in get_args(returned) or (returned,):
                found |= _classes(base) | {base}
        elif inspect.isclass(each) and is_dataclass(each):
            found.add(each)
        elif get_args(each) and each is not hint:
            found |= _classes(each)
    found |= set(classes_of(hint).values())
    named = {kind for kind in found if kind.__name__[0] != "_" and kind.__name__ not in HIDDEN}
    # Without those that Lightning makes at run time, such as a LightningAdam.
    written = {k for k in named if getattr(sys.modules[k.__module__], k.__name__, None) is k}
    return {kind for kind in written if kind.__module__.startswith(PACKAGES)}


def text(description: dict[str, dict[str, Any]]) -> str:
    """Format the description as JSON, with one line for each option and class."""
    parts = []
    for part, groups in description.items():
        lines = []
        for name, members in groups.items():
            inner = ",\n".join(f"   {json.dumps(n)}: {json.dumps(m)}" for n, m in members.items())
            lines.append(f"  {json.dumps(name)}: {{\n{inner}\n  }}")
        parts.append(f" {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    OUTPUT.write_text(text(describe()), encoding="utf-8")
