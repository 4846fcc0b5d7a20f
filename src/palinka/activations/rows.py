"""What the loader asks of a set of rows, wherever they lie."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Context:
    """Where a row comes from.

    Attributes:
        tokens: Token ids of the row's block, `(context_length,)`.
        offset: Place of the row's token in the block.
        document: Number of the token's document in the corpus.
        position: Place of the token in its document; -1 for a beginning-of-text token.
    """

    tokens: NDArray[np.int32]
    offset: int
    document: int
    position: int


class RowReader(Protocol):
    """Reads rows for one reader thread, until it is closed."""

    def read_into(self, out: torch.Tensor, runs: NDArray[np.int64]) -> None:
        """Fill `out` with runs of rows, one after the other.

        Args:
            out: Contiguous, in the stored dtype, `(rows, width)`.
            runs: First row and row after the last of each run, `(runs, 2)`.
        """

    def close(self) -> None:
        """Give back whatever is held open."""


class RowSource(Protocol):
    """Numbered rows of one width and dtype: a `Cache` on disk or `MemoryRows`."""

    @property
    def rows(self) -> int:
        """How many rows there are."""

    @property
    def width(self) -> int:
        """Numbers per row."""

    @property
    def dtype(self) -> torch.dtype:
        """How a number is stored."""

    @property
    def identity(self) -> str:
        """What a checkpoint remembers the rows by."""

    @property
    def run_rows(self) -> int:
        """How many neighbouring rows a shuffled order keeps together."""

    def reader(self) -> RowReader:
        """A reader of these rows."""

    def context(self, row: int) -> Context:
        """The text that a row comes from."""
