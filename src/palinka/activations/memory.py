"""Rows held in memory, for passages too small to be worth a cache."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.activations.rows import Context
from palinka.activations.statistics import RowStatistics
from palinka.errors import InputError


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

    Attributes:
        statistics: Sums over all rows.

    Raises:
        InputError: If shapes do not fit, or a row holds NaN or infinities.
    """

    # Rows lie in the order of the text: only single ones make a shuffled order.
    run_rows = 1

    def __init__(
        self,
        activations: torch.Tensor,
        tokens: NDArray[np.int64],
        documents: NDArray[np.int64],
        positions: NDArray[np.int64],
        skip: int = 0,
        identity: str | None = None,
    ) -> None:
        blocks, context_length = tokens.shape
        rows_per_block = context_length - skip
        if (
            activations.ndim != 2
            or len(activations) != blocks * rows_per_block
            or not tokens.shape == documents.shape == positions.shape
        ):
            raise InputError(
                f"activations of shape {tuple(activations.shape)} given for {blocks} blocks of "
                f"{context_length} tokens, of which {skip} are skipped: expected "
                f"({blocks * rows_per_block}, width), and documents and positions like tokens"
            )
        bad = int((~torch.isfinite(activations)).any(dim=1).sum())
        if bad:
            raise InputError(
                f"{bad} of {len(activations)} rows hold NaN or infinities; check the language "
                "model and the dtype it runs in"
            )
        self._activations = activations.contiguous().cpu()
        self._tables = (tokens, documents, positions)
        self._skip = skip
        self._rows_per_block = rows_per_block
        self.statistics = RowStatistics.of(self._activations.to(torch.float64).numpy())
        self.identity = identity or self._hash()

    def _hash(self) -> str:
        described = f"{self.dtype} {tuple(self._activations.shape)} {self._skip}"
        checksum = hashlib.sha256(described.encode())
        checksum.update(self._activations.view(torch.uint8).numpy().data)
        for table in self._tables:
            checksum.update(np.ascontiguousarray(table, "<i8").data)
        return checksum.hexdigest()

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self._activations)

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self._activations.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """How a number is stored."""
        return self._activations.dtype

    def reader(self) -> "MemoryRows":
        """A reader of the rows, which is this object itself."""
        return self

    def read_into(self, out: torch.Tensor, runs: NDArray[np.int64]) -> None:
        """Fill `out`, `(rows, width)`, with runs of rows, one after the other."""
        lengths = runs[:, 1] - runs[:, 0]
        ends = np.cumsum(lengths)
        numbers = np.repeat(runs[:, 1] - ends, lengths) + np.arange(len(out))
        torch.index_select(self._activations, 0, torch.from_numpy(numbers), out=out)

    def close(self) -> None:
        """Nothing is held open."""

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """The rows from `start` to before `stop`, `(rows, width)`."""
        return self._activations[start:stop].clone()

    def context(self, row: int) -> Context:
        """The text that a row comes from."""
        if not 0 <= row < self.rows:
            raise InputError(f"row {row} asked of rows 0 to {self.rows - 1}")
        block, place = divmod(row, self._rows_per_block)
        offset = self._skip + place
        tokens, documents, positions = self._tables
        return Context(
            tokens=tokens[block].astype(np.int32),
            offset=offset,
            document=int(documents[block, offset]),
            position=int(positions[block, offset]),
        )
