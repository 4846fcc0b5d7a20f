"""Where each latent is most active, kept in bounded memory while batches go by."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.result import as_matrix
from palinka.errors import InputError


@dataclass(frozen=True)
class TopActivations:
    """The largest activations of every latent, in descending order.

    Attributes:
        values: `(latents, n)`, float32; 0 where a latent has been active less often.
        rows: Numbers of the rows that they stand in, `(latents, n)`; -1 where there is none.
    """

    values: NDArray[np.float32]
    rows: NDArray[np.int64]


class TopHeap:
    """The `n` largest positive activations of each latent so far, and the rows they stand in.

    Of equal activations the earlier row comes first. Memory is that of one batch's activations
    that may still belong to the largest, and of `latents · n` others.

    Args:
        latents: How many latents there are.
        n: How many activations to keep of each.

    Raises:
        InputError: If there is nothing to keep.
    """

    def __init__(self, latents: int, n: int) -> None:
        if latents < 1 or n < 1:
            raise InputError(f"the top {n} of {latents} latents; give at least one of each")
        self._values = np.zeros((latents, n), dtype=np.float32)
        self._rows = np.full((latents, n), -1, dtype=np.int64)
        self._seen = 0

    def add(self, batch: ArrayLike) -> None:
        """Take the next rows of activations, `(rows, latents)`.

        Raises:
            InputError: If it is no matrix of these latents, or holds NaN or infinities.
        """
        matrix = as_matrix(batch, "latents", minimum_rows=0)
        latents, n = self._values.shape
        if matrix.shape[1] != latents:
            raise InputError(
                f"a batch of {matrix.shape[1]} latents; what came before has {latents}"
            )
        # An activation as large as the smallest kept one came later, and stays out.
        row, latent = np.nonzero(matrix > self._values[:, -1])
        new = matrix[row, latent].astype(np.float32)
        touched = np.unique(latent)
        values = np.concatenate([self._values[touched].reshape(-1), new])
        rows = np.concatenate([self._rows[touched].reshape(-1), row + self._seen])
        owners = np.concatenate([np.repeat(touched, n), latent])
        # Kept ones come first and in order, new ones by row: a stable order settles ties.
        order = np.lexsort((-values, owners))
        owners = owners[order]
        first = np.searchsorted(owners, touched)
        rank = np.arange(len(owners)) - first[np.searchsorted(touched, owners)]
        best = order[rank < n]
        self._values[touched] = values[best].reshape(-1, n)
        self._rows[touched] = rows[best].reshape(-1, n)
        self._seen += len(matrix)

    def found(self) -> TopActivations:
        """What has been kept so far."""
        return TopActivations(self._values.copy(), self._rows.copy())


def top_activations(batches: Iterable[ArrayLike], n: int) -> TopActivations:
    """Find the rows at which each latent is most active, in one pass.

    Args:
        batches: Activations, `(rows, latents)` each, of which one at a time is held.
        n: How many rows to find for each latent.

    Raises:
        InputError: If there are no batches, or one does not fit or is not finite.
    """
    heap: TopHeap | None = None
    for batch in batches:
        if heap is None:
            heap = TopHeap(np.shape(batch)[1], n)
        heap.add(batch)
    if heap is None:
        raise InputError("there are no latents: expected at least one batch")
    return heap.found()
