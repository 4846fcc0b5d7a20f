"""Seeded permutations that any program can compute again."""

import numpy as np
from numpy.typing import NDArray

_STEP = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD = 2**64 - 1


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64, word by word."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_FACTORS[0])
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_FACTORS[1])
    return words ^ (words >> np.uint64(31))


def permutation(length: int, *seeds: int) -> NDArray[np.int64]:
    """The numbers below `length` in an order that depends on all seeds.

    NumPy does not promise the streams of its generators over versions; files and resumed
    runs need an order that stays.

    Args:
        length: How many numbers.
        seeds: Integers, of which the lowest 64 bits count.

    Returns:
        Element numbers in ascending order of their splitmix64 output, `(length,)`.

    Source:
        Steele, Lea & Flood (2014), Fast splittable pseudorandom number generators.
    """
    state = np.zeros(1, np.uint64)
    for seed in seeds:
        state = _mixed((state ^ np.uint64(seed & _WORD)) + np.uint64(_STEP))
    counters = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(_STEP)
    return np.argsort(_mixed(state + counters), kind="stable").astype(np.int64, copy=False)
