"""Places at which each latent is active, drawn at random while batches go by."""

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.top_activations import TopHeap


class ActiveSample:
    """For each latent so many of the rows at which it is active, all of them equally probable.

    Every activation is given a random priority, and the rows with the largest ones are kept,
    which is a simple random sample without replacement, in one pass and bounded memory.

    Args:
        latents: How many latents there are.
        n: How many rows to draw for each.
        seed: Draws the rows.

    Source:
        Efraimidis & Spirakis (2006), Weighted random sampling with a reservoir, with weights of 1.
    """

    def __init__(self, latents: int, n: int, seed: int = 0) -> None:
        self._heap = TopHeap(latents, n)
        self._random = np.random.default_rng(seed)

    def add(self, batch: NDArray[np.float32]) -> None:
        """Take the next rows of activations, `(rows, latents)`."""
        active = batch > 0
        priority = np.zeros(batch.shape, dtype=np.float32)
        # In (0, 1]: a priority of 0 would be none.
        priority[active] = 1.0 - self._random.random(int(active.sum()), dtype=np.float32)
        self._heap.add(priority)

    def rows(self) -> NDArray[np.int64]:
        """The drawn rows, `(latents, n)`, in random order; -1 where it is active less often."""
        return self._heap.found().rows
