"""Results of analyses, and the data that analyses take."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.errors import InputError, brief, checks_strings, did_you_mean

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Table = dict[str, Sequence[Any] | NDArray[Any]]

_CLUSTERED = "clean clusters outcome"
_PAIRED = f"{_CLUSTERED} corrupted possible axes solved direction"
_CONTROLLED = f"{_CLUSTERED} controls kl"
# The parameters that get the data, by its kind; every other one of an analysis is an option.
DATA_PARAMETERS = {
    "two conditions": "a b",
    "two sites": "x y groups",
    "each condition": "x",
    "tokens of a passage": "latents",
    "categories of a passage": "latents targets words documents",
    "effects of patching": f"patched {_PAIRED}",
    "effects of ablation": f"patched direct top clean_top {_PAIRED}",
    "estimated effects of patches": f"estimated patched {_PAIRED}",
    "effects of paths": f"patched {_PAIRED}",
    "lesions": f"lesioned units doses balance preferred {_PAIRED}",
    "predictions of layers": "target_log_probability target_rank entropy kl_to_final top_ids "
    "top_probability clusters",
    "contributions to logits": "contributions logit_difference clusters axes unit",
    "attention patterns": "sums counts reference clusters",
    "doses of directions": f"steered alphas control_kl directions {_CONTROLLED}",
    "removals of subspaces": "removed variance_removed control_variance dormant ranks sites "
    + _CONTROLLED,
}

Analysis = TypeVar("Analysis", bound=Callable[..., "Result"])


def takes(data: str) -> Callable[[Analysis], Analysis]:
    """Declare the data of an analysis, a key of `DATA_PARAMETERS`, which has its parameters.

    `a`, `b`, `x` and `y` are items, `(items, units)`, and `groups` has the condition of each.
    `latents` are `(tokens, units)`, `targets` the mask of a category's tokens, `words` and
    `documents` the token and text of each row. The last two and `groups` are given if wanted.
    Others are what the study of an analysis yields. Options may be `**options` of a `TypedDict`.
    A string that the hint of its parameter does not allow is rejected.
    """
    if data not in DATA_PARAMETERS:
        raise InputError(f"takes({data!r}): unknown data{did_you_mean(data, DATA_PARAMETERS)}")

    def declare(function: Analysis) -> Analysis:
        shown = inspect.signature(function)
        parameters = dict(shown.parameters)
        for options in get_args(getattr(parameters.get("options"), "annotation", None)):
            del parameters["options"]
            for name, hint in get_type_hints(options).items():
                function.__annotations__[name] = hint
                parameters[name] = inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=..., annotation=hint
                )
            shown = shown.replace(parameters=[*parameters.values()])
        function.__signature__, function.takes = shown, data  # type: ignore[attr-defined]
        return checks_strings(function)

    return declare


@dataclass(frozen=True)
class Result:
    """Findings of one analysis; array fields are float64 unless they are counts or masks.

    Attributes:
        notes: Remarks, such as the number of units without variance.
    """

    scalar_units: ClassVar[Mapping[str, str]] = {}  # for a terminal; of units and conditions
    _: KW_ONLY
    notes: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        if "__repr__" not in vars(cls):  # `dataclass` would make one with whole arrays
            cls.__repr__ = Result.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        shown = (f"{n}={brief(value)}" for n, value in values.items() if n != "notes" or value)
        return f"{type(self).__name__}({', '.join(shown)})"

    def scalars(self) -> dict[str, float]:
        """The single numbers among the findings, as a flat dict."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        numbers = (bool, int, float, np.number, np.bool_)
        return {name: float(value) for name, value in values if isinstance(value, numbers)}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array among the findings under its own name; those not computed are left out."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if isinstance(value, np.ndarray)}

    def tables(self) -> dict[str, Table]:
        """Tables for people: name to columns of equal length."""
        return {}

    def headline(self, units: str, conditions: Sequence[str]) -> str:
        """One sentence for a terminal, with p or that nothing is tested; empty for the numbers.

        `units` are `latents` or `units`; `conditions` are the names of those that are compared.
        """
        return ""


def p_text(p: float | None, null: Array | None = None, alpha: float = 0.05) -> str:
    """A p-value in words, with its floor where it is the smallest that `null` can give."""
    if p is None or np.isnan(p):
        return "no p-value" + " (set permutations)" * (p is None)
    floor = null is not None and p * (len(null) + 1) < 1.5
    least = f", the smallest of {len(null):,} permutations" if null is not None and floor else ""
    return f"p {p:.3g}{least}{' (not significant)' * (not p <= alpha)}"


def as_matrix(x: ArrayLike, name: str, minimum_rows: int = 1) -> NDArray[np.floating[Any]]:
    """A matrix from NumPy or torch, on any device, in its own floating dtype.

    Half precision becomes float32, integers and booleans float64. NaN, infinities, fewer rows or
    other than two dimensions are an `InputError` with the matrix's `name`.
    """
    if hasattr(x, "detach"):  # a torch tensor, of which NumPy cannot read every dtype
        tensor = x.detach().cpu()
        x = tensor.float().numpy() if tensor.itemsize < 4 else tensor.numpy()
    matrix = np.asarray(x)
    if matrix.dtype == np.float16:
        matrix = matrix.astype(np.float32)
    elif not np.issubdtype(matrix.dtype, np.floating):
        matrix = matrix.astype(np.float64)
    if matrix.ndim != 2 or len(matrix) < minimum_rows or matrix.shape[1] == 0:
        expected = f"(rows, columns), at least {minimum_rows} rows and one column"
        raise InputError(f"{name} has the shape {matrix.shape}; expected {expected}")
    # A sum is finite only if nothing in it is NaN or infinite; a finite overflow is looked at.
    if not np.isfinite(matrix.sum(dtype=np.float64)) and not np.isfinite(matrix).all():
        rows = f"{(~np.isfinite(matrix)).any(axis=1).sum()} of {len(matrix)} rows"
        raise InputError(f"{name} holds NaN or infinite values in {rows}; leave them out")
    return matrix


def as_float64(x: ArrayLike, name: str, minimum_rows: int = 1) -> Array:
    """`as_matrix` in float64, with its errors."""
    return as_matrix(x, name, minimum_rows).astype(np.float64, copy=False)


def two_conditions(
    a: ArrayLike, b: ArrayLike, minimum_rows: int, pairs: bool, unpaired: str
) -> tuple[Array, Array]:
    """Two conditions, `(items, units)`, of the same units, and under `pairs` as many items.

    `unpaired` is the option that takes conditions without pairs.
    """
    first, second = as_float64(a, "a", minimum_rows), as_float64(b, "b", minimum_rows)
    if first.shape[1] != second.shape[1]:
        given = f"a has {first.shape[1]} units and b has {second.shape[1]}"
        raise InputError(f"{given}; expected the same units")
    if pairs and len(first) != len(second):
        given = f"a has {len(first)} items and b has {len(second)}"
        raise InputError(f"{given}; pairs need the same number, or give {unpaired}")
    return first, second


def scaled(x: NDArray[Any], axis: int) -> NDArray[Any]:
    """Scale finite values by powers of two to magnitudes of at most 1: squares stay in range.

    Values along `axis` share their scale. Exact but for those below the largest one's rounding.
    """
    largest = np.abs(x).max(axis=axis, keepdims=True)
    return np.asarray(np.ldexp(x, -np.frexp(largest)[1]))
