"""Compile loops over numbers to machine code, once per computer."""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import config, njit

Loop = TypeVar("Loop", bound=Callable[..., object])


def compiled(loop: Loop) -> Loop:
    """Compile a loop when it is first called with each type of arguments.

    The machine code is kept beside the source, or else in the user's cache folder, or where
    `NUMBA_CACHE_DIR` says. It lets other threads run meanwhile.
    """
    # Division by zero gives infinity as in NumPy; checking for it would stop vectorization.
    try:
        return cast("Loop", njit(cache=True, nogil=True, error_model="numpy")(loop))
    except RuntimeError:  # numba found no folder that it may write to
        return cast("Loop", njit(nogil=True, error_model="numpy")(loop))


def threads() -> int:
    """How many threads compiled loops may use: all cores, or what `NUMBA_NUM_THREADS` says."""
    return int(vars(config)["NUMBA_NUM_THREADS"])
