"""The classes that a parsed configuration names, before any of them is made."""

import inspect
import sys
from typing import Any

from jsonargparse import Namespace

from palinka.errors import InputError
from palinka.plain_values import admits_null


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
