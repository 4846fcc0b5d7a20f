"""From a class name and its arguments to an autoencoder."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from palinka.errors import InputError
from palinka.printable import printable

T = TypeVar("T")


def build(name: str, arguments: Mapping[str, Any], base: type[T]) -> T:
    """Make the autoencoder of a class name, which may carry the module in front.

    Only classes whose module has been imported are found: no name in a file imports code.

    Args:
        name: Such as `"KSparseAutoencoder"`.
        arguments: The constructor's arguments.
        base: The class that is expected, itself or as a parent.

    Raises:
        InputError: If there is no such class, or an argument is unknown, missing or wrong.
    """
    known = {kind.__name__: kind for kind in _family(base) if not inspect.isabstract(kind)}
    short = name.rpartition(".")[2]
    kind = known.get(short)
    if kind is None:
        raise InputError(
            f"{name!r} is no known {base.__name__}{_nearest(short, known)}: there is"
            f" {', '.join(sorted(known))}, and your own once their module has been imported"
        )
    parameters = inspect.signature(kind).parameters
    for unknown in sorted(arguments.keys() - parameters.keys()):
        raise InputError(
            f"{kind.__name__} has no argument {unknown!r}{_nearest(unknown, parameters)}:"
            f" it takes {', '.join(parameters)}"
        )
    for required, parameter in parameters.items():
        if parameter.default is parameter.empty and required not in arguments:
            raise InputError(f"the description of a {kind.__name__} lacks {required!r}: add it")
    for argument, value in arguments.items():
        _check_type(kind, argument, value)
    try:
        return kind(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"a {kind.__name__} cannot be made of these arguments: {reason}"
        ) from error


def _check_type(kind: type, name: str, value: Any) -> None:
    """Refuse what a constructor would take for true or for a number without being one."""
    try:
        annotation = inspect.signature(kind, eval_str=True).parameters[name].annotation
    except NameError:  # of a class whose annotations are for type checkers alone
        return
    is_union = get_origin(annotation) in (Union, UnionType)
    expected = get_args(annotation) if is_union else (annotation,)
    if not all(type_ in (bool, int, float, str, NoneType) for type_ in expected):
        return
    fits = type(value) in expected or (type(value) is int and float in expected)
    if not fits:
        names = " or ".join("null" if type_ is NoneType else type_.__name__ for type_ in expected)
        raise InputError(
            f"{kind.__name__}: {name} must be {names}, got {printable(repr(value)[:80])}"
        )


def _family(kind: type[T]) -> Iterable[type[T]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


def _nearest(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
