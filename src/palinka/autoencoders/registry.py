"""From a class name and its arguments to an autoencoder."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from palinka.errors import InputError

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
    try:
        return kind(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"a {kind.__name__} cannot be made of these arguments: {reason}"
        ) from error


def _family(kind: type[T]) -> Iterable[type[T]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


def _nearest(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
