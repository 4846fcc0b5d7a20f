"""Rows held in memory, for passages too small to be worth a cache."""

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.activations.rows import Context, RowReader
from palinka.activations.statistics import RowStatistics


class MemoryRows:
    """The in-memory twin of `Cache`, in the order of blocks and positions.

    Args:
        activations: Rows in the order of blocks and positions,
            `(blocks * (context_length - skip), width)`.
        tokens: Token ids, `(blocks, context_length)`.
        documents: Document number of each token, `(blocks, context_length)`.
        positions: Place of each token in its document, `(blocks, context_length)`.
        skip: Leading positions of each block that have no rows.
        identity: What a checkpoint remembers the rows by; a hash of the rows if not given.

    Raises:
        InputError: If shapes do not fit, or a row holds NaN or infinities.
    """

    rows: int
    width: int
    dtype: torch.dtype
    identity: str
    run_rows: int
    statistics: RowStatistics

    def __init__(
        self,
        activations: torch.Tensor,
        tokens: NDArray[np.int64],
        documents: NDArray[np.int64],
        positions: NDArray[np.int64],
        skip: int = 0,
        identity: str | None = None,
    ) -> None:
        raise NotImplementedError

    def reader(self) -> RowReader:
        """A reader of the rows."""
        raise NotImplementedError

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """The rows from `start` to before `stop`, `(rows, width)`."""
        raise NotImplementedError

    def context(self, row: int) -> Context:
        """The text that a row comes from."""
        raise NotImplementedError
