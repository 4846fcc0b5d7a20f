"""Reading rows of shards at their offsets."""

import os
import stat
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.activations.files import told_apart
from palinka.activations.shard import ShardShape, shard_name
from palinka.errors import InputError

# Below the usual limit of 1,024 open files, with room for whoever else opens some.
_MOST_OPEN = 256


def open_shard(folder: Path, shape: ShardShape) -> int:
    """A descriptor of a shard whose size and header are as they should be.

    Raises:
        InputError: If it is missing, no ordinary file, or of another size or header.
    """
    path = folder / shard_name(shape.index)
    with told_apart(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not an ordinary file; remove it and harvest again")
        if status.st_size != shape.bytes:
            raise InputError(
                f"{path}: {status.st_size} bytes, expected {shape.bytes}; "
                "remove the cache folder and harvest again"
            )
        if os.pread(descriptor, len(shape.header), 0) != shape.header:
            raise InputError(
                f"{path}: its header is damaged; remove the cache folder and harvest again"
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_exactly(descriptor: int, target: memoryview, offset: int, path: Path) -> None:
    """Fill `target` with the bytes at `offset`.

    Raises:
        InputError: If the file ends before, or cannot be read.
    """
    with told_apart(path):
        while target:
            count = _read_some(descriptor, target, offset)
            if not count:
                raise InputError(f"{path}: ended early; remove the cache folder and harvest again")
            target, offset = target[count:], offset + count


def _read_copied(descriptor: int, target: memoryview, offset: int) -> int:
    data = os.pread(descriptor, len(target), offset)
    target[: len(data)] = data
    return len(data)


def _read_in_place(descriptor: int, target: memoryview, offset: int) -> int:
    return os.preadv(descriptor, [target], offset)


# macOS has it from version 11.
_read_some = _read_in_place if hasattr(os, "preadv") else _read_copied


class ShardReader:
    """Reads rows of a cache for one thread; shards are opened, and checked, on first touch."""

    def __init__(self, folder: Path, shapes: Sequence[ShardShape]) -> None:
        self._folder = folder
        self._shapes = shapes
        self._first_rows = np.cumsum([0] + [shape.rows for shape in shapes])
        self._open: OrderedDict[int, int] = OrderedDict()

    def read_into(self, out: torch.Tensor, runs: NDArray[np.int64]) -> None:
        """Fill `out` with runs of rows, one after the other.

        Args:
            out: Contiguous, in the stored dtype, `(rows, width)`.
            runs: First row and row after the last of each run, `(runs, 2)`.

        Raises:
            InputError: If a shard is gone or damaged.
        """
        target = out.view(torch.uint8).reshape(-1).numpy().data
        row_bytes = out.shape[1] * out.itemsize
        filled = 0
        for first, last in joined(runs).tolist():
            while first < last:
                index = int(np.searchsorted(self._first_rows, first, side="right")) - 1
                shard_first, shard_last = self._first_rows[index : index + 2].tolist()
                stop = min(last, shard_last)
                length = (stop - first) * row_bytes
                read_exactly(
                    self._descriptor(index),
                    target[filled : filled + length],
                    self._shapes[index].activations_start + (first - shard_first) * row_bytes,
                    self._folder / shard_name(index),
                )
                filled, first = filled + length, stop

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
