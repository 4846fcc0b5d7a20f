"""Reading rows of shards at their offsets."""

import os
from collections import OrderedDict
from collections.abc import MutableMapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.activations.checksums import check_shards
from palinka.activations.shard import ShardShape, shard_name
from palinka.activations.shard_file import open_shard, read_exactly

# Below the usual limit of 1,024 open files, with room for whoever else opens some.
_MOST_OPEN = 256


class ShardReader:
    """Reads rows of a cache for one thread; shards are opened, and checked, on first touch.

    Args:
        folder: The cache's folder.
        shapes: All its shards.
        unverified: SHA-256 of the shards whose content is compared with it before rows are read
            from them; what has been compared is taken out.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Sequence[ShardShape],
        unverified: MutableMapping[ShardShape, str],
    ) -> None:
        self._folder = folder
        self._shapes = shapes
        self._unverified = unverified
        self._first_rows = np.cumsum([0] + [shape.rows for shape in shapes])
        self._starts = np.array([shape.activations_start for shape in shapes], np.int64)
        self._paths = [folder / shard_name(shape.index) for shape in shapes]
        self._open: OrderedDict[int, int] = OrderedDict()

    def read_into(self, out: torch.Tensor, runs: NDArray[np.int64]) -> None:
        """Fill `out` with runs of rows, one after the other.

        Args:
            out: Contiguous, in the stored dtype, `(rows, width)`.
            runs: First row and row after the last of each run, `(runs, 2)`.

        Raises:
            InputError: If a shard is gone or damaged.
        """
        shards, first, rows = cut_at(self._first_rows, joined(runs))
        if self._unverified:
            self._verify(shards)
        target = out.view(torch.uint8).reshape(-1).numpy().data
        row_bytes = out.shape[1] * out.itemsize
        offsets = self._starts[shards] + (first - self._first_rows[shards]) * row_bytes
        ends = np.cumsum(rows) * row_bytes
        # Plain numbers, since a batch is hundreds of runs.
        places = np.stack((shards, offsets, ends - rows * row_bytes, ends), axis=1).tolist()
        for index, offset, start, stop in places:
            descriptor = self._descriptor(index)
            read_exactly(descriptor, target[start:stop], offset, self._paths[index])

    def _verify(self, shards: NDArray[np.int64]) -> None:
        """Compare the checksums of shards that rows are about to be read from the first time."""
        touched = {self._shapes[index] for index in np.unique(shards).tolist()}
        expected = {
            shape: sha256 for shape, sha256 in list(self._unverified.items()) if shape in touched
        }
        check_shards(self._folder, expected)
        for shape in expected:
            self._unverified.pop(shape, None)

    def _descriptor(self, index: int) -> int:
        if index in self._open:
            self._open.move_to_end(index)
        else:
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
            self._open[index] = open_shard(self._folder, self._shapes[index])
        return self._open[index]

    def close(self) -> None:
        """Close all shards."""
        while self._open:
            os.close(self._open.popitem()[1])


def joined(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same rows in fewer runs: neighbours that go on where the last one ended are one."""
    if not len(runs):
        return runs
    breaks = np.flatnonzero(runs[1:, 0] != runs[:-1, 1])
    starts = runs[np.concatenate(([0], breaks + 1)), 0]
    stops = runs[np.concatenate((breaks, [len(runs) - 1])), 1]
    return np.stack((starts, stops), axis=1)


def cut_at(borders: NDArray[np.int64], runs: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Cut runs of rows where a shard ends.

    Args:
        borders: First row of each shard, and the number of all rows.
        runs: First row and row after the last of each run, `(runs, 2)`; runs without rows are
            left out.

    Returns:
        The shard, the first row and the number of rows of each piece, in order.
    """
    runs = runs[runs[:, 0] < runs[:, 1]]
    first = np.searchsorted(borders, runs[:, 0], side="right") - 1
    pieces = np.searchsorted(borders, runs[:, 1], side="left") - first
    before = np.cumsum(pieces) - pieces
    shards = np.arange(pieces.sum()) + np.repeat(first - before, pieces)
    starts = np.maximum(np.repeat(runs[:, 0], pieces), borders[shards])
    stops = np.minimum(np.repeat(runs[:, 1], pieces), borders[shards + 1])
    return shards, starts, stops - starts
