"""The options of an entry, held against the parameters of its analysis."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from palinka.errors import InputError

# What the runner fills in; every other parameter of an analysis is an option.
DATA_PARAMETERS = frozenset({"a", "b", "x", "y", "groups", "latents", "targets"})


def check_options(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Make sure that an analysis takes some options, before anything is read for it.

    Args:
        name: What messages call the analysis.
        function: The analysis, whose type hints say what each option must be.
        options: Plain values by name.

    Raises:
        InputError: If an option is unknown, of another type, or a seed below zero.
    """
    known = set(inspect.signature(function).parameters) - DATA_PARAMETERS
    hints = get_type_hints(function)
    for option, value in options.items():
        if option not in known:
            nearest = difflib.get_close_matches(option, known, n=1, cutoff=0.4)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(known)}"
            raise InputError(f"{name} has no option {option!r}; {hint}")
        choices = _choices(hints[option])
        if not any(_fits(value, choice) for choice in choices):
            expected = " or ".join(_shown(choice) for choice in choices)
            raise InputError(f"{name}: the option {option} is {value!r}; expected {expected}")
        if option == "seed" and value < 0:
            raise InputError(f"{name}: the option seed is {value}; expected at least 0")


def _choices(hint: Any) -> list[Any]:
    """The alternatives that a type hint gives: types, and single values."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return [choice for part in get_args(hint) for choice in _choices(part)]
    return list(get_args(hint)) if origin is Literal else [hint]


def _fits(value: Any, choice: Any) -> bool:
    if not isinstance(choice, type):
        return type(value) is type(choice) and bool(value == choice)
    return type(value) in ((int, float) if choice is float else (choice,))


def _shown(choice: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(choice, repr(choice))
