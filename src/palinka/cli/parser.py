"""Command-line parsers."""

import argparse
import difflib
import inspect
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from jsonargparse import (
    DefaultHelpFormatter,
    Namespace,
    get_loader,
    set_loader,
    set_parsing_settings,
)
from lightning.pytorch.cli import LightningArgumentParser

from palinka.errors import InputError, admits_null, check_bounds


def check_classes(value: Any, key: str = "") -> None:
    """Make sure that every `class_path` names a class, and that no argument is null in vain.

    Where a callable is expected, the parser would take any function there, `torch.load` too,
    and call it with the `init_args`. Null it takes for every argument.

    Args:
        value: A parsed configuration, or a part of it.
        key: Where the part stands.

    Raises:
        InputError: If a path names anything else, or null stands where a class does not expect it.
    """
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, (list, tuple)):
        for inner in value:
            check_classes(inner, key)
    if not isinstance(value, dict):
        return
    path = value.get("class_path")
    if isinstance(path, str):
        kind = imported(path)
        if not inspect.isclass(kind):
            raise InputError(f"{key}: class_path is {path!r}, which is no class; give a class")
        _check_nulls(kind, value.get("init_args") or {}, key)
    for name, inner in value.items():
        check_classes(inner, f"{key}.{name}" if key else str(name))


def _check_nulls(kind: type, arguments: Any, key: str) -> None:
    try:
        parameters = inspect.signature(kind).parameters
    except ValueError:  # a class written in C, which does not say
        return
    for name, parameter in parameters.items():
        hint = parameter.annotation
        silent = hint is parameter.empty or isinstance(hint, str)
        # One without a default may be linked to something that is yet to be made.
        expected = parameter.default in (None, parameter.empty) or silent or admits_null(hint)
        if not expected and name in arguments and arguments[name] is None:
            raise InputError(f"{key}: {name} is null; give a value, or leave it out")


def imported(path: str) -> Any:
    """What a path stands for among what has been imported; nothing is imported for it."""
    module, _, name = path.rpartition(".")
    if module in sys.modules:
        return getattr(sys.modules[module], name, None)
    return getattr(imported(module), name, None) if module else None


_SUBCLASSES = re.compile(r", known subclasses: (?P<paths>[\w., ]+)")
_MOST_CLASSES = 12
# By how their options begin; what belongs to none of these comes before them.
_SECTIONS = ("data.", "model.", "options.", "trainer.")
# Of as many options the usage names those that must be given.
_MANY = 8


class HelpFormatter(DefaultHelpFormatter):
    """jsonargparse's, with classes by the short names that a command line takes."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text: str = super()._get_help_string(action)
        return _SUBCLASSES.sub(lambda found: _classes(found["paths"].split(", ")), text)


def _classes(paths: Sequence[str]) -> str:
    """Palinka's own where there are any; those of Lightning and torch are known elsewhere."""
    own = [path for path in paths if path.startswith("palinka.")]
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in own or paths))
    more = ", …" if len(names) > _MOST_CLASSES or 0 < len(own) < len(paths) else ""
    return f", classes: {', '.join(names[:_MOST_CLASSES])}{more}"


def usage(parser: argparse.ArgumentParser) -> str | None:
    """The command line in brief; None for argparse's own where that is brief enough."""
    options = [action for action in parser._actions if action.option_strings]
    if len(options) <= _MANY:
        return None
    needed = [
        f"{action.option_strings[0]} {action.metavar or action.dest.rpartition('.')[2].upper()}"
        for action in options
        if action.required and "." not in action.dest
    ]
    # A command of Lightning's is called `palinka [options] fit` by jsonargparse.
    words = parser.prog.replace(" [options]", "")
    return " ".join([words, *needed, "[--config FILE ...] [--KEY VALUE ...]"])


def in_order(groups: Iterable[argparse._ArgumentGroup]) -> list[argparse._ArgumentGroup]:
    """Groups of options as they are to be read."""

    def rank(group: argparse._ArgumentGroup) -> int:
        names = [action.dest for action in group._group_actions]
        if group.title == "Linked arguments":
            return len(_SECTIONS) + 1
        sections = (
            place
            for place, start in enumerate(_SECTIONS, 1)
            if any(n.startswith(start) for n in names)
        )
        return next(sections, 0)

    return sorted(groups, key=rank)


# More than a configuration has. The parser copies a whole list for every one of its values: a
# thousand take it ten seconds.
_MOST_VALUES = 2_000
_LONGEST_LIST = 250

# A value may name a class only where one is expected. Its module is imported before the class
# can be looked at, so nothing that comes with Python is: no autoencoder or callback lives there.
set_parsing_settings(
    import_path_denylist=sorted(sys.stdlib_module_names),
    instantiate_subclass_spec_in_any=False,
)

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
_PARSER_KEY = re.compile(r'Parser key "(?P<key>[^"]+)"')
_ANSWERED = "; did you mean '"
_ANSWER = re.compile(rf"(?P<answer>(?:Option|there is no class) '[^']*'[^;]*{_ANSWERED}[^']*'\?)")


def _bounded(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """A loader of YAML that refuses what is nested too deeply or stands for too many values."""

    def load_bounded(text: str) -> Any:
        check_bounds(text, _MOST_VALUES, _LONGEST_LIST)
        try:
            value = load(text)
        except (ValueError, TypeError, AttributeError) as error:  # such as of `!!int x`
            raise yaml.YAMLError(f"a tag does not fit its value: {error}") from error
        _refuse_pipes(value)
        return value

    return load_bounded


def _refuse_pipes(value: Any) -> None:
    """Refuse the name of a pipe: the parser would wait for a section of the configuration in it.

    Raises:
        YAMLError: If a value is one.
    """
    if isinstance(value, str):
        with suppress(OSError, ValueError):  # the most are no files at all
            if stat.S_ISFIFO(Path(value).stat().st_mode):
                raise yaml.YAMLError(f"{value} is a pipe; give a file")
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            _refuse_pipes(inner)


set_loader("yaml", _bounded(get_loader("yaml")), (yaml.YAMLError,))
# A default may be a member of an enumeration although its type is `str`: Timer's `interval`.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, one: dumper.represent_data(one.value))


class ConfigArgumentParser(LightningArgumentParser):
    """Lightning's parser, with errors as one `InputError` line instead of a page of usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, **kwargs})

    def format_help(self, *args: Any) -> str:
        """Format the help with a usage of a line, and the groups in the order of their use."""
        groups: Any = self._action_groups
        given = self.usage
        ordered: Any = in_order(groups)
        self._action_groups, self.usage = ordered, given or usage(self)
        try:
            text: str = super().format_help(*args)
        finally:
            self._action_groups, self.usage = groups, given
        return text

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse a command line and the files that it names.

        Raises:
            InputError: If it cannot be used.
        """
        try:
            settings = super().parse_args(*args, **kwargs)
        except UnicodeDecodeError as error:
            raise InputError(
                f"a configuration is not UTF-8 (byte {error.start} cannot be decoded); convert it"
            ) from error
        except RecursionError as error:
            raise InputError("a configuration is nested too deeply: divide it") from error
        except InputError:
            raise
        # Such as of a path with a NUL in it, or a number too large for any.
        except (ValueError, TypeError, OSError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"a configuration cannot be read: {reason}") from error
        check_classes(settings)
        self._check_nulls(settings)
        return settings

    def _check_nulls(self, settings: Namespace) -> None:
        """Refuse null where it is neither expected nor the default; the parser takes it anywhere.

        Raises:
            InputError: If there is one.
        """
        for action in self._actions:
            hint = getattr(action, "_typehint", None)
            given = action.dest in settings and settings[action.dest] is None
            if given and action.default is not None and not admits_null(hint):
                raise InputError(f"{action.dest} is null; give a value, or leave it out")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse the command line.

        Raises:
            InputError: Always; with the nearest valid name where an unknown one was given.
        """
        parser = getattr(ex, "subcommand_parser", None) or self
        line = " ".join(message.split()).removeprefix('Parser key "config": ')
        unknown = _UNKNOWN_OPTION.search(line)
        unknown_class = _UNKNOWN_CLASS.search(line)
        literal = _LITERAL.search(line)
        answer = _ANSWER.search(line)
        if answer:  # an inner parser has answered already; around it stands what else was tried
            line = ": ".join([*_PARSER_KEY.findall(line), answer["answer"]])
        elif unknown:
            line += _suggestion(unknown["key"] or unknown["flag"], _valid_names(parser, line))
        elif literal:
            line = _not_a_choice(_PARSER_KEY.findall(line), *literal.groups())
        elif unknown_class:
            line = _unknown_class(parser, unknown_class["name"], _PARSER_KEY.findall(line)[-1])
        raise InputError(line) from ex


def _valid_names(parser: ConfigArgumentParser, message: str) -> set[str]:
    """What may stand where the unknown name stood: a class's parameters, or the options."""
    of_class = _CLASS_PATH.search(message)
    if of_class:
        named = imported(of_class["path"])
        return set(inspect.signature(named).parameters) if inspect.isclass(named) else set()
    names: set[str] = set()
    for action in _leaves(parser):
        parts = action.split(".")
        names.update(".".join(parts[: depth + 1]) for depth in range(len(parts)))
    return names


def _unknown_class(parser: ConfigArgumentParser, name: str, key: str) -> str:
    """What to say of a class name that stands for no class."""
    hint = next(
        (a._typehint for a in parser._actions if a.dest == key and hasattr(a, "_typehint")), None
    )
    bases = [t for t in (hint, *get_args(hint)) if isinstance(t, type) and t is not type(None)]
    plain = [base.__name__ for base in bases if base.__module__ == "builtins"]
    if plain:  # `float | Tensor`, of which nobody means the class
        return f"{key}: expected {' or '.join(plain)}, got '{name}'"
    names = sorted({c.__name__ for base in bases for c in _concrete_subclasses(base)})
    line = f"{key}: there is no class '{name}'"
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    if nearest:
        return f"{line}{_ANSWERED}{nearest[0]}'?"
    return f"{line}; choose from {', '.join(names)}" if 0 < len(names) <= 20 else line


def _not_a_choice(keys: Sequence[str], known: str, given: str) -> str:
    """What to say of a value that is none of those which may stand there."""
    names = [name.strip(" '") for name in known.split(",")]
    nearest = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"{_ANSWERED}{nearest[0]}'? There is" if nearest else "; choose from"
    return f"{': '.join([*keys[-1:], repr(given)])} is no choice here{hint} {', '.join(names)}"


def class_names(hint: Any) -> list[str]:
    """The classes that may be named where a value of this type is expected."""
    return sorted(_classes_by_name(hint))


def class_named(hint: Any, name: str) -> type:
    """The class that a name stands for where a value of this type is expected."""
    return _classes_by_name(hint)[name]


def _classes_by_name(hint: Any) -> dict[str, type]:
    bases = [t for t in (hint, *get_args(hint)) if isinstance(t, type) and is_subclass_type(t)]
    return {c.__name__: c for base in bases for c in _concrete_subclasses(base)}


def is_subclass_type(kind: type) -> bool:
    """Whether the parser takes the name of a subclass for a value of this type."""
    plain = kind.__module__ in sys.stdlib_module_names or is_dataclass(kind)
    return not plain and bool(kind.__subclasses__())


def _concrete_subclasses(base: type) -> set[type]:
    found: set[type] = set() if inspect.isabstract(base) else {base}
    children: list[type] = base.__subclasses__()
    return found.union(*(_concrete_subclasses(child) for child in children))


def _leaves(parser: ConfigArgumentParser) -> Iterable[str]:
    for action in parser._actions:
        yield action.dest
        choices = action.choices
        if isinstance(choices, dict):  # the subcommands of the main parser
            for subparser in choices.values():
                yield from _leaves(subparser)


def _suggestion(given: str, valid: set[str]) -> str:
    """The nearest valid name at the first level of `given` that is not valid itself."""
    parts = given.split(".")
    for depth in range(len(parts)):
        prefix = ".".join(parts[: depth + 1])
        if prefix in valid:
            continue
        level = {name for name in valid if name.count(".") == depth}
        siblings = {name for name in level if name.split(".")[:depth] == parts[:depth]} or level
        nearest = difflib.get_close_matches(prefix, siblings, n=1, cutoff=0.5)
        if nearest:
            return f"{_ANSWERED}{nearest[0]}'?"
        return f"; choose from {', '.join(sorted(siblings))}" if 0 < len(siblings) <= 20 else ""
    return ""


def move_configs_first(arguments: Sequence[str]) -> list[str]:
    """Move every `--config FILE` ahead of the other options.

    jsonargparse lets whatever stands later win; people expect the command line to win over
    a file wherever the two stand.
    """
    command, *rest = arguments
    files: list[str] = []
    others: list[str] = []
    remaining = iter(rest)
    for argument in remaining:
        if argument in ("-c", "--config"):
            files += [argument, *([value] if (value := next(remaining, None)) is not None else [])]
        elif argument.startswith("--config="):
            files.append(argument)
        else:
            others.append(argument)
    return [command, *files, *others]


def with_overrides(arguments: Sequence[str], layer: dict[str, Any]) -> list[str]:
    """Put settings between the config files and the options of the command line.

    Args:
        arguments: A command line that `move_configs_first` has sorted.
        layer: Settings that win over the files and lose to the options.
    """
    command, *rest = arguments
    last_file = max((end for end, _ in _config_options(rest)), default=0)
    text = yaml.safe_dump(layer, default_flow_style=True, width=2**31, sort_keys=False)
    return [command, *rest[:last_file], "--config", text.strip(), *rest[last_file:]]


def config_files(arguments: Sequence[str]) -> list[str]:
    """The configuration files of a command line, in their order."""
    return [file for _, file in _config_options(arguments)]


def _config_options(arguments: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Every configuration file, with the place after it."""
    for place, argument in enumerate(arguments):
        if argument in ("-c", "--config"):
            yield place + 2, "".join(arguments[place + 1 : place + 2])
        elif argument.startswith("--config="):
            yield place + 1, argument.removeprefix("--config=")
