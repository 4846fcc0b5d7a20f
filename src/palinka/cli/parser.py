"""Parser of command lines with configuration files."""

import inspect
import itertools
import sys
from collections.abc import Sequence
from enum import Enum
from typing import Any, NoReturn, get_args

import jsonargparse
import yaml

from palinka.errors import InputError, one_line

# A value may name a class only where one is expected. Its module is imported before the class
# can be examined: the standard library, with neither autoencoders nor callbacks, is excluded.
jsonargparse.set_parsing_settings(
    import_path_denylist=sorted(sys.stdlib_module_names),
    instantiate_subclass_spec_in_any=False,
)
# A default may be a member of an enumeration although its type is `str`: Timer's `interval`.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, one: dumper.represent_data(one.value))


class ArgumentParser(jsonargparse.ArgumentParser):
    """jsonargparse's parser, with errors as one `InputError` line instead of a page of usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse a command line and the files that it names."""
        try:
            return super().parse_args(*args, **kwargs)
        except InputError:
            raise
        # Of another encoding, a YAML tag that does not fit its value, or a number out of range.
        except (ValueError, TypeError, AttributeError, OSError, OverflowError, RecursionError) as e:
            raise InputError(f"a configuration cannot be read: {one_line(e)}") from e

    def validate(self, namespace: jsonargparse.Namespace, *args: Any, **kwargs: Any) -> None:
        """Validate, and reject functions in place of classes, and null where none is expected.

        Where a callable is expected, jsonargparse accepts any function, such as `torch.load`, and
        would call it with the `init_args`. It accepts null for every argument.
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
        """Raise an `InputError`; `palinka.cli.options` has answered the usual mistakes."""
        raise InputError(" ".join(message.split()).removeprefix('Parser key "config": ')) from ex


def imported(path: str) -> Any:
    """Look up a dotted path among the modules that are imported already."""
    module, _, name = path.rpartition(".")
    if module in sys.modules:
        return getattr(sys.modules[module], name, None)
    return getattr(imported(module), name, None) if module else None


def move_configs_first(arguments: Sequence[str]) -> list[str]:
    """Move every `--config FILE`, as `--config=FILE`, ahead of the other options.

    In jsonargparse the last value wins; here the command line wins over files.
    """
    configs: list[str] = []
    others: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument in ("-c", "--config"):
            configs.append(f"--config={next(remaining, '')}")
        else:
            (configs if argument.startswith("--config=") else others).append(argument)
    words = list(itertools.takewhile(lambda other: not other.startswith("-"), others))
    return [*words, *configs, *others[len(words) :]]


def with_overrides(arguments: Sequence[str], settings: dict[str, Any]) -> list[str]:
    """Put nested settings between the configuration files and the options of a command line."""
    text = yaml.safe_dump(settings, default_flow_style=True, width=2**31, sort_keys=False)
    return move_configs_first([*arguments, f"--config={text.strip()}"])
