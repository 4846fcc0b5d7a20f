"""Loops over rows, compiled to machine code and spread over torch's threads.

Every row is computed by one thread, from beginning to end and in one order, so that results do
not depend on how many threads there are.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from numba import njit

Loop = TypeVar("Loop", bound=Callable[..., object])

# Pieces per thread: rows differ in what they cost, and other programs use the same cores.
PIECES = 4


def compiled(*, sums: bool = False) -> Callable[[Loop], Loop]:
    """Compile a loop when it is first called with each type of arguments.

    The machine code is kept beside the source, or else in the user's cache folder, or where
    `NUMBA_CACHE_DIR` says. It lets other threads run meanwhile.

    Args:
        sums: Whether a sum may be taken in another order than it is written in, which a
            processor needs to take several terms at once. NaN and infinity stay what they are.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    if sums:
        options["fastmath"] = {"reassoc", "contract", "nsz"}

    def compile_it(loop: Loop) -> Loop:
        try:
            return cast("Loop", njit(cache=True, **options)(loop))
        except RuntimeError:  # numba found no folder that it may write to
            return cast("Loop", njit(**options)(loop))

    return compile_it


def in_parallel(loop: Callable[..., object], count: int, *arguments: object) -> None:
    """Call `loop(start, stop, *arguments)` for ranges that make up `0 … count`, several at once.

    Args:
        loop: A compiled loop.
        count: How many rows there are.
        arguments: What else it takes.
    """
    threads = torch.get_num_threads()
    if threads == 1 or count < threads:
        loop(0, count, *arguments)
        return
    pieces = min(count, threads * PIECES)
    ends = [piece * count // pieces for piece in range(pieces + 1)]
    # A pool does not outlive a fork.
    pool = _pool(os.getpid(), threads)
    for done in [pool.submit(loop, start, stop, *arguments) for start, stop in pairwise(ends)]:
        done.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="palinka-kernels")
