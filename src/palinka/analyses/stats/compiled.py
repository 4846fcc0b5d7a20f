"""Compile loops over numbers to machine code, once per computer."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import config, njit

Loop = TypeVar("Loop", bound=Callable[..., object])


def compiled(loop: Loop) -> Loop:
    """Compile a loop when it is first called with each type of arguments.

    The machine code is kept beside the source, or else in the user's cache folder, or in
    `NUMBA_CACHE_DIR`. It lets other threads run meanwhile.
    """
    # Division by zero gives infinity as in NumPy; checking for it would stop vectorization.
    return cast("Loop", compiled_with(error_model="numpy")(loop))


def compiled_with(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`compiled`, with options of `numba.njit`."""

    def compile_it(loop: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, nogil=True, **options)(loop)
        except RuntimeError:  # numba found no folder that it may write to
            return njit(nogil=True, **options)(loop)

    return compile_it


def threads() -> int:
    """Number of threads for compiled loops: `NUMBA_NUM_THREADS`, or all cores."""
    return int(vars(config)["NUMBA_NUM_THREADS"])
