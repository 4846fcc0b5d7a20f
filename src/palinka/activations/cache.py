"""Reading a finished cache."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.activations.key import CacheKey
from palinka.activations.rows import Context, RowReader
from palinka.activations.statistics import RowStatistics


class Cache:
    """A finished cache on disk, open for reading. Use `Cache.open`.

    Attributes:
        folder: Where it lies.
        key: Layout and settings as the manifest has them.
        statistics: Sums over all rows.
    """

    folder: Path
    key: CacheKey
    statistics: RowStatistics

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether `folder` holds a finished cache, that is, a manifest."""
        raise NotImplementedError

    @classmethod
    def open(cls, folder: Path, key: CacheKey | None = None) -> "Cache":
        """Open a finished cache and check everything but the checksums of its shards.

        Args:
            folder: The cache's own folder.
            key: The expected key, if known.

        Raises:
            InputError: If there is no manifest, the manifest is damaged, of a newer format or
                of another key, or a shard is missing, of a wrong size, not an ordinary file or
                has a wrong header. The message names every such file.
        """
        raise NotImplementedError

    @property
    def rows(self) -> int:
        """How many rows there are; numbered in the order they have on disk."""
        raise NotImplementedError

    @property
    def blocks(self) -> int:
        """How many token blocks the rows come from."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Numbers per row."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """How a number is stored."""
        raise NotImplementedError

    @property
    def identity(self) -> str:
        """What a checkpoint remembers the cache by: the digest of its key."""
        raise NotImplementedError

    @property
    def run_rows(self) -> int:
        """How many neighbouring rows a shuffled order keeps together."""
        raise NotImplementedError

    def verify(self) -> None:
        """Read every byte of every shard and compare the checksums.

        Raises:
            InputError: If shards are damaged; the message names each of them.
        """
        raise NotImplementedError

    def reader(self) -> RowReader:
        """A reader of the rows, for one thread."""
        raise NotImplementedError

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """The rows from `start` to before `stop` in their order on disk, `(rows, width)`."""
        raise NotImplementedError

    def read(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """The rows of the given numbers, `(len(rows), width)`."""
        raise NotImplementedError

    def context(self, row: int) -> Context:
        """The text that a row comes from."""
        raise NotImplementedError
