"""Plain values of a file, held against the type hints of what they are for."""

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_SHOWN = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
}


def misfit(value: Any, hint: Any) -> str | None:
    """What a type hint expects instead of a value, in words.

    Numbers are not truth values, and no text stands for a number; a whole number may stand
    where a number is expected.

    Args:
        value: A truth value, number, text or null.
        hint: A type hint of such types, literals and unions of them.

    Returns:
        None where the value fits, or where the hint names other types than these.
    """
    choices = _choices(hint)
    if any(isinstance(choice, type) and choice not in _SHOWN for choice in choices):
        return None
    if any(_fits(value, choice) for choice in choices):
        return None
    return " or ".join(
        _SHOWN[choice] if isinstance(choice, type) else repr(choice) for choice in choices
    )


def admits_null(hint: Any) -> bool:
    """Whether null may stand where a type hint stands; also where the hint says nothing."""
    return any(choice in (NoneType, object, Any, None) for choice in _choices(hint))


def _choices(hint: Any) -> list[Any]:
    """The alternatives that a type hint gives: types, and single values."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return [choice for part in get_args(hint) for choice in _choices(part)]
    if origin is Literal:
        return list(get_args(hint))
    kind = origin or hint
    return [kind if isinstance(kind, type) else object]


def _fits(value: Any, choice: Any) -> bool:
    if not isinstance(choice, type):
        return type(value) is type(choice) and bool(value == choice)
    return type(value) in ((int, float) if choice is float else (choice,))
