"""The options of an entry, held against the parameters of its analysis."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from palinka.errors import InputError
from palinka.plain_values import misfit

# What the runner fills in; every other parameter of an analysis is an option.
DATA_PARAMETERS = frozenset(
    {"a", "b", "x", "y", "groups", "latents", "targets", "words", "documents"}
)


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
        expected = misfit(value, hints[option])
        if expected is not None:
            raise InputError(f"{name}: the option {option} is {value!r}; expected {expected}")
        if option == "seed" and value < 0:
            raise InputError(f"{name}: the option seed is {value}; expected at least 0")
