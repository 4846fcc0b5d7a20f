"""Parser of command lines with configuration files."""

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, NoReturn, get_args

import yaml
from jsonargparse import DefaultHelpFormatter, Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from palinka.errors import InputError, admits_null, did_you_mean, one_line

# A value may name a class only where one is expected. Its module is imported before the class
# can be examined: the standard library, with neither autoencoders nor callbacks, is excluded.
set_parsing_settings(
    import_path_denylist=sorted(sys.stdlib_module_names),
    instantiate_subclass_spec_in_any=False,
)
# A default may be a member of an enumeration although its type is `str`: Timer's `interval`.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, one: dumper.represent_data(one.value))

# Order of the sections in --help; other options come first.
_SECTIONS = ("data.", "model.", "options.", "trainer.")
# With more options than these, the usage names only the required ones.
MAX_USAGE_OPTIONS = 8
MAX_CLASSES = 12
_SUBCLASSES = re.compile(r", known subclasses: (?P<paths>[\w., ]+)")
# Parts of jsonargparse's messages.
_PARSER_KEY = re.compile(r'Parser key "(?P<key>[^"]+)"')
_UNKNOWN_OPTION = re.compile(
    r"(?:does not accept option|Option) '(?P<key>[^']+)'"
    r"|Unrecognized arguments?: --(?P<flag>[^\s=]+)",
    re.IGNORECASE,
)
_CLASS_PATH = re.compile(r"class_path '(?P<path>[^']+)'")
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (?P<name>\w+)")
_LITERAL = re.compile(
    r"Expected a typing\.Literal\[(?P<known>[^\]]*)\]\. Got value: (?P<given>.*)$"
)
# A suggestion of an inner parser, within a list of all that was tried.
_SUGGESTION = re.compile(r"(?:Option|there is no class) '[^']*'[^;]*; did you mean '[^']*'\?")


class HelpFormatter(DefaultHelpFormatter):
    """jsonargparse's formatter, with short names of classes."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text: str = super()._get_help_string(action)
        return _SUBCLASSES.sub(lambda found: _classes(found["paths"].split(", ")), text)


def _classes(paths: Sequence[str]) -> str:
    """Palinka's own if there are any, otherwise those of Lightning and torch."""
    own = [path for path in paths if path.startswith("palinka.")]
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in own or paths))
    more = ", …" if len(names) > MAX_CLASSES or 0 < len(own) < len(paths) else ""
    return f", classes: {', '.join(names[:MAX_CLASSES])}{more}"


class ConfigArgumentParser(LightningArgumentParser):
    """Lightning's parser, with errors as one `InputError` line instead of a page of usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, **kwargs})

    def format_help(self, *args: Any) -> str:
        """Format the help with a short usage and the sections in order."""
        options = [action for action in self._actions if action.option_strings]
        if self.usage is None and len(options) > MAX_USAGE_OPTIONS:
            needed = [
                f"{a.option_strings[0]} {a.metavar or a.dest.upper()}"
                for a in options
                if a.required and "." not in a.dest
            ]
            # jsonargparse calls a subcommand `palinka [options] fit`.
            words = self.prog.replace(" [options]", "")
            self.usage = " ".join([words, *needed, "[--config FILE ...] [--KEY VALUE ...]"])
        self._action_groups = sorted(self._action_groups, key=_section)
        text: str = super().format_help(*args)
        return text

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse a command line and the files that it names."""
        try:
            settings = super().parse_args(*args, **kwargs)
        except InputError:
            raise
        except UnicodeDecodeError as error:
            raise InputError(
                f"a configuration is not UTF-8 (byte {error.start} cannot be decoded); convert it"
            ) from error
        except RecursionError as error:
            raise InputError("a configuration is nested too deeply") from error
        # Of a YAML tag that does not fit its value, or a number out of range.
        except (ValueError, TypeError, AttributeError, OSError, OverflowError) as error:
            reason = one_line(error)
            raise InputError(f"a configuration cannot be read: {reason}") from error
        validate_class_paths(settings)
        _reject_nulls(
            settings,
            {a.dest: getattr(a, "_typehint", None) for a in self._actions if a.default is not None},
        )
        return settings

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise an `InputError`, with the nearest valid name of an unknown one."""
        parser = getattr(ex, "subcommand_parser", None) or self
        line = " ".join(message.split()).removeprefix('Parser key "config": ')
        keys = _PARSER_KEY.findall(line)
        if suggestion := _SUGGESTION.search(line):
            line = ": ".join([*keys, suggestion[0]])
        elif unknown := _UNKNOWN_OPTION.search(line):
            line += _nearest_option(unknown["key"] or unknown["flag"], _valid_names(parser, line))
        elif literal := _LITERAL.search(line):
            known = [name.strip(" '") for name in literal["known"].split(",")]
            given = literal["given"]
            hint = did_you_mean(given, known, most=0)
            line = ": ".join([*keys[-1:], f"{given!r} is not one of {', '.join(known)}{hint}"])
        elif unknown_class := _UNKNOWN_CLASS.search(line):
            line = _unknown_class(parser, unknown_class["name"], keys[-1])
        raise InputError(line) from ex


def _section(group: argparse._ArgumentGroup) -> int:
    """Place of a group of options in --help."""
    for place, start in enumerate(_SECTIONS, 1):
        if any(action.dest.startswith(start) for action in group._group_actions):
            return place
    return len(_SECTIONS) + 1 if group.title == "Linked arguments" else 0


def validate_class_paths(value: Any, key: str = "") -> None:
    """Check that every `class_path` names a class, and that its arguments allow null.

    Where a callable is expected, the parser would accept any function, such as `torch.load`, and
    call it with the `init_args`. It accepts null for every argument.

    Args:
        value: A parsed configuration, or a part of it.
        key: The dotted name of the part.

    Raises:
        InputError: If a path names anything else, or null is given for an argument that is
            neither null by default nor allows it.
    """
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, (list, tuple)):
        for inner in value:
            validate_class_paths(inner, key)
    if not isinstance(value, dict):
        return
    path = value.get("class_path")
    if isinstance(path, str):
        kind = imported(path)
        if not inspect.isclass(kind):
            raise InputError(f"{key}: class_path is {path!r}, which is not a class; give a class")
        _reject_nulls(value.get("init_args") or {}, _annotations(kind), f"{key}.")
    for name, inner in value.items():
        validate_class_paths(inner, f"{key}.{name}" if key else str(name))


def _annotations(kind: type) -> dict[str, Any]:
    """Type hints of arguments with a default that is not None.

    An argument without one may be linked to a value that does not exist yet.
    """
    try:
        parameters = inspect.signature(kind).parameters
    except ValueError:  # a class written in C without a signature
        return {}
    return {
        name: None if isinstance(p.annotation, str) or p.annotation is p.empty else p.annotation
        for name, p in parameters.items()
        if p.default is not None and p.default is not p.empty
    }


def _reject_nulls(given: Any, hints: dict[str, Any], prefix: str = "") -> None:
    for name, hint in hints.items():
        if name in given and given[name] is None and not admits_null(hint):
            raise InputError(f"{prefix}{name} is null; give a value, or leave it out")


def imported(path: str) -> Any:
    """Look up a dotted path among the modules that are imported already."""
    module, _, name = path.rpartition(".")
    if module in sys.modules:
        return getattr(sys.modules[module], name, None)
    return getattr(imported(module), name, None) if module else None


def _valid_names(parser: argparse.ArgumentParser, message: str) -> set[str]:
    """Parameters of the class that a message is about, or the parser's options."""
    if of_class := _CLASS_PATH.search(message):
        named = imported(of_class["path"])
        return set(inspect.signature(named).parameters) if inspect.isclass(named) else set()
    names: set[str] = set()
    for action in _leaves(parser):
        parts = action.split(".")
        names.update(".".join(parts[: depth + 1]) for depth in range(len(parts)))
    return names


def _leaves(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield action.dest
        if isinstance(action.choices, dict):  # the subcommands of the main parser
            for subparser in action.choices.values():
                yield from _leaves(subparser)


def _nearest_option(given: str, valid: set[str]) -> str:
    """Suggest a name at the first level of `given` that is not valid."""
    parts = given.split(".")
    for depth in range(len(parts)):
        prefix = ".".join(parts[: depth + 1])
        if prefix not in valid:
            level = {name for name in valid if name.count(".") == depth}
            siblings = {name for name in level if name.split(".")[:depth] == parts[:depth]}
            return did_you_mean(prefix, siblings or level)
    return ""


def _unknown_class(parser: argparse.ArgumentParser, name: str, key: str) -> str:
    hint = next((getattr(a, "_typehint", None) for a in parser._actions if a.dest == key), None)
    bases = [t for t in (hint, *get_args(hint)) if isinstance(t, type) and t is not type(None)]
    plain = [base.__name__ for base in bases if base.__module__ == "builtins"]
    if plain:  # as in `float | Tensor`
        return f"{key}: expected {' or '.join(plain)}, got '{name}'"
    names = {c.__name__ for base in bases for c in _concrete_subclasses(base)}
    return f"{key}: there is no class '{name}'{did_you_mean(name, names)}"


def classes_of(hint: Any) -> dict[str, type]:
    """Classes that a type hint allows, by name."""
    bases = [t for t in (hint, *get_args(hint)) if isinstance(t, type) and _has_subclasses(t)]
    return {c.__name__: c for base in bases for c in _concrete_subclasses(base)}


def _has_subclasses(kind: type) -> bool:
    plain = kind.__module__ in sys.stdlib_module_names or is_dataclass(kind)
    return not plain and bool(kind.__subclasses__())


def _concrete_subclasses(base: type) -> set[type]:
    found: set[type] = set() if inspect.isabstract(base) else {base}
    children: list[type] = base.__subclasses__()
    return found.union(*(_concrete_subclasses(child) for child in children))


def move_configs_first(arguments: Sequence[str]) -> list[str]:
    """Move every `--config FILE`, as `--config=FILE`, ahead of the other options.

    In jsonargparse the last value wins; here the command line wins over files.
    """
    words: list[str] = []
    configs: list[str] = []
    options: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument in ("-c", "--config") and (file := next(remaining, None)) is not None:
            configs.append(f"--config={file}")
        elif argument.startswith("--config="):
            configs.append(argument)
        elif argument.startswith("-") or configs or options:
            options.append(argument)
        else:
            words.append(argument)
    return [*words, *configs, *options]


def with_overrides(arguments: Sequence[str], settings: dict[str, Any]) -> list[str]:
    """Put settings between the configuration files and the options of a command line.

    Args:
        arguments: Result of `move_configs_first`.
        settings: Nested settings, which win over the files.
    """
    options = (
        place
        for place, argument in enumerate(arguments)
        if argument.startswith("-") and not argument.startswith("--config=")
    )
    place = next(options, len(arguments))
    text = yaml.safe_dump(settings, default_flow_style=True, width=2**31, sort_keys=False)
    return [*arguments[:place], f"--config={text.strip()}", *arguments[place:]]


def config_files(arguments: Sequence[str]) -> list[str]:
    """Configuration files of a result of `move_configs_first`."""
    start = "--config="
    return [argument.removeprefix(start) for argument in arguments if argument.startswith(start)]
