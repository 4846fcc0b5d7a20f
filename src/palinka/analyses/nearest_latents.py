"""Which directions of a dictionary are closest to each other."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.blocks import blocks
from palinka.analyses.result import as_matrix, scaled
from palinka.errors import InputError

# So many cosines are held at once.
PIECE = 1 << 24


@dataclass(frozen=True)
class NearestLatents:
    """The nearest other directions of each, in descending order of their cosine.

    Attributes:
        latents: Numbers of the others, `(latents, n)`.
        cosines: Their cosines, `(latents, n)`, float32; 0 with a direction of norm 0.
    """

    latents: NDArray[np.int64]
    cosines: NDArray[np.float32]


def nearest_latents(dictionary: ArrayLike, n: int) -> NearestLatents:
    """Find the directions with the largest cosine to each direction, itself left out.

    Of equal cosines the lower number comes first.

    Args:
        dictionary: Directions, `(latents, width)`.
        n: How many others; fewer where there are not so many.

    Raises:
        InputError: If the dictionary is no finite matrix, or `n` is below 1.
    """
    directions = scaled(as_matrix(dictionary, "dictionary"), axis=1)
    if n < 1:
        raise InputError(f"the nearest {n} latents are asked for; ask for at least 1")
    count = len(directions)
    n = min(n, count - 1)
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    unit = np.divide(directions, norms, out=np.zeros_like(directions), where=norms > 0)
    latents = np.empty((count, n), dtype=np.int64)
    cosines = np.empty((count, n), dtype=np.float32)
    if n == 0:
        return NearestLatents(latents, cosines)
    for rows in blocks(count, PIECE // count):
        block = unit[rows] @ unit.T
        own = np.arange(rows.start, rows.stop)
        block[np.arange(len(own)), own] = -np.inf
        # Of those as near as the last one that is kept, partitioning would keep any.
        least = -np.partition(-block, n - 1, axis=1)[:, n - 1]
        for row, (values, bound) in enumerate(zip(block, least, strict=True), start=rows.start):
            near = np.flatnonzero(values >= bound)
            near = near[np.argsort(-values[near], kind="stable")[:n]]
            latents[row], cosines[row] = near, np.clip(values[near], -1.0, 1.0)
    return NearestLatents(latents, cosines)
