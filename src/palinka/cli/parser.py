"""Parser of command lines with configuration files."""

import inspect
import sys
from argparse import SUPPRESS, Action
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NoReturn, get_args

import jsonargparse
import yaml
from jsonargparse import ActionConfigFile, _typehints  # type: ignore[attr-defined]

from palinka.errors import InputError, one_line

# A value may name a class only where one is expected. Its module is imported before the class
# can be examined: the standard library, which has no autoencoders or callbacks, is excluded.
jsonargparse.set_parsing_settings(
    import_path_denylist=sorted(sys.stdlib_module_names), instantiate_subclass_spec_in_any=False
)
# A default may be a member of an enumeration although its type is `str`: Timer's `interval`.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, one: dumper.represent_data(one.value))
_parsing: Any = _typehints
_keep_valid_arguments = _parsing.discard_init_args_on_class_path_change


def _keep_given_arguments(action: Any, before: Any, value: Any) -> None:
    """Let another class begin with its own defaults, and with what was given for the former.

    jsonargparse keeps the former one's defaults, too, of arguments that both classes have.
    """
    # A language model that was given as a mapping has no class path when it is saved.
    known = None, value["class_path"]
    if before and "init_args" in before and before["class_path"] not in known:
        kwargs = getattr(action, "sub_add_kwargs", {})
        former = _parsing.ActionTypeHint.get_class_parser(before["class_path"], kwargs)
        for name, default in former.get_defaults().items():
            if name in before["init_args"] and before["init_args"][name] == default:
                del before["init_args"][name]
    _keep_valid_arguments(action, before, value)


_parsing.discard_init_args_on_class_path_change = _keep_given_arguments


class ArgumentParser(jsonargparse.ArgumentParser):
    """jsonargparse's parser; the command line wins over files, and errors are an `InputError`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def add_overrides(self, overrides: Callable[[jsonargparse.Namespace], dict[str, Any]]) -> None:
        """Merge settings over the files: a function of these, and of options in `_FIRST`."""
        self.overrides = overrides
        self.add_argument("--overrides", action=_Overrides, default=SUPPRESS, nargs=0)

    def parse_args(self, args: Any = (), *more: Any, **kwargs: Any) -> Any:
        """Parse a command line, after the files that it names, since the last value wins."""
        try:
            return super().parse_args(_in_order(args, hasattr(self, "overrides")), *more, **kwargs)
        except InputError:
            raise
        # A wrong encoding, a YAML tag that does not fit its value, or a number out of range.
        except (ValueError, TypeError, AttributeError, OSError, OverflowError) as e:
            raise InputError(f"a configuration cannot be read: {one_line(e)}") from e

    def validate(self, namespace: jsonargparse.Namespace, *args: Any, **kwargs: Any) -> None:
        """Validate, and reject functions in place of classes, and null where none is expected.

        jsonargparse accepts both, and would call any function, such as `torch.load`.
        """
        super().validate(namespace, *args, **kwargs)
        for action in self._actions:
            name, hint = action.dest, getattr(action, "_typehint", None)
            value = namespace.get(name, action.default)
            for each in value if isinstance(value, list) else [value]:
                path = getattr(each, "class_path", None)
                if path is not None and not inspect.isclass(imported(path)):
                    raise TypeError(f"{name}: class_path is {path!r}, which is not a class")
            nullable = hint in (None, Any) or type(None) in get_args(hint)
            if value is None and action.default is not None and not nullable:
                raise TypeError(f"{name} is null; give a value, or leave it out")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise an `InputError`; `palinka.cli.options` has caught the usual mistakes."""
        raise InputError(" ".join(message.split()).removeprefix('Parser key "config": ')) from ex


class _Overrides(Action):
    def __call__(self, parser: Any, namespace: Any, *_: Any) -> None:
        if settings := parser.overrides(namespace):
            text = yaml.safe_dump(settings, default_flow_style=True, width=2**31, sort_keys=False)
            ActionConfigFile.apply_config(parser, namespace, "config", text.strip())


_FIRST = ("--ckpt_path", "--trainer", "--format")  # on which overrides depend


def imported(path: str) -> Any:
    """Look up a dotted path among the modules that are imported already."""
    module, _, name = path.rpartition(".")
    if module in sys.modules:
        return getattr(sys.modules[module], name, None)
    return getattr(imported(module), name, None) if module else None


def _in_order(arguments: Sequence[str], overrides: bool) -> list[str]:
    """Order a command line: words, files, what the overrides depend on, these, and the others."""
    words: list[str] = []
    files: list[str] = []
    read: list[str] = []
    others: list[str] = []
    place, remaining = words, iter(arguments)
    for argument in remaining:
        if argument in ("-c", "--config"):
            argument = f"--config={next(remaining, '')}"
        if argument.startswith("--config="):
            place = files
        elif argument.startswith("--"):
            place = read if argument.startswith(_FIRST) else others
        place.append(argument)
    return [*words, *files, *read, *(["--overrides"] if overrides else []), *others]
