"""Compile loops over numbers to machine code, once per computer."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import config, njit

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled_with(**options: Any) -> Callable[[Loop], Loop]:
    """Compile a loop, with options of `numba.njit`, when it is first called with each type.

    The machine code is kept beside the source, or else in the user's cache folder, or in
    `NUMBA_CACHE_DIR`. It lets other threads run meanwhile.
    """

    def compile_loop(loop: Loop) -> Loop:
        try:
            found: Loop = njit(cache=True, nogil=True, **options)(loop)
        except RuntimeError:  # numba found no folder that it may write to
            found = njit(nogil=True, **options)(loop)
        return found

    return compile_loop


# Division by zero gives infinity as in NumPy; checking for it would stop vectorization.
compiled = compiled_with(error_model="numpy")


def threads() -> int:
    """Number of threads for compiled loops: `NUMBA_NUM_THREADS`, or all cores."""
    return int(vars(config)["NUMBA_NUM_THREADS"])
