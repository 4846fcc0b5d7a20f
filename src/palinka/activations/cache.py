"""Reading a finished cache."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.activations.checksums import check_shards
from palinka.activations.files import told_apart
from palinka.activations.key import CacheKey
from palinka.activations.manifest import MANIFEST_NAME, Manifest
from palinka.activations.reading import ShardReader
from palinka.activations.rows import Context
from palinka.activations.shard import shard_name
from palinka.activations.shard_file import open_shard, read_exactly
from palinka.activations.statistics import RowStatistics
from palinka.corpora import Block
from palinka.errors import InputError

# One read should be long enough to keep a disk busy ...
_RUN_BYTES = 256 * 2**10
# ... but in a run, a row should meet few others of its own context,
_NEIGHBORS = 0.1
# and even a small cache should be shuffled well.
_FEWEST_RUNS = 1024


class Cache:
    """A finished cache on disk, open for reading. Use `Cache.open`.

    Attributes:
        folder: Where it lies.
        key: Layout and settings as the manifest has them.
        statistics: Sums over all rows.
    """

    def __init__(self, folder: Path, manifest: Manifest, verify_shards: bool = False) -> None:
        self.folder = folder
        self.key: CacheKey = manifest.key
        self.statistics: RowStatistics = manifest.statistics
        self._shards = manifest.shards
        self._shapes = manifest.shapes
        self._checksums = {
            shape: shard.sha256 for shape, shard in zip(self._shapes, self._shards, strict=True)
        }
        # Shared by all readers: what one has compared, no other compares again.
        self._unverified = dict(self._checksums) if verify_shards else {}
        self._first_rows = np.cumsum([0] + [shape.rows for shape in self._shapes])

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether `folder` holds a finished cache, that is, a manifest."""
        with told_apart(folder):
            return (folder / MANIFEST_NAME).exists()

    @classmethod
    def open(
        cls, folder: Path, key: CacheKey | None = None, *, verify_shards: bool = False
    ) -> "Cache":
        """Open a finished cache and check everything but the checksums of its shards.

        Args:
            folder: The cache's own folder.
            key: The expected key, if known.
            verify_shards: Whether to compare a shard's checksum when rows are first read from
                it.

        Raises:
            InputError: If there is no manifest, the manifest is damaged, of a newer format or
                of another key, or a shard is missing, of a wrong size, not an ordinary file or
                has a wrong header. The message names every such file.
        """
        if not cls.exists(folder):
            raise InputError(f"{folder}: no finished cache (no {MANIFEST_NAME}); harvest it first")
        manifest = Manifest.read(folder)
        if key is not None and manifest.key.digest != key.digest:
            raise InputError(
                f"{folder}: a cache of other settings (key {manifest.key.digest[:16]}, expected "
                f"{key.digest[:16]}); choose another cache folder or remove this one"
            )
        problems = []
        for shape in manifest.shapes:
            try:
                os.close(open_shard(folder, shape))
            except InputError as error:
                problems.append(str(error))
        if problems:
            raise InputError(" · ".join(problems))
        return cls(folder, manifest, verify_shards)

    @property
    def rows(self) -> int:
        """How many rows there are; numbered in the order they have on disk."""
        return int(self._first_rows[-1])

    @property
    def blocks(self) -> int:
        """How many token blocks the rows come from."""
        return sum(shard.blocks for shard in self._shards)

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self._shards)

    @property
    def bytes(self) -> int:
        """The size of all shards."""
        return sum(shape.bytes for shape in self._shapes)

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self.key.layout.width

    @property
    def dtype(self) -> torch.dtype:
        """How a number is stored."""
        return self.key.layout.torch_dtype

    @property
    def identity(self) -> str:
        """What a checkpoint remembers the cache by: the digest of its key."""
        return self.key.digest

    @property
    def run_rows(self) -> int:
        """How many neighboring rows a shuffled order keeps together."""
        layout = self.key.layout
        window = layout.blocks_per_shard * layout.rows_per_block
        # A run of r rows of a shuffled window has (r-1)(context-1)/(window-1) others of a row's
        # own context.
        mixed = 1 + int(_NEIGHBORS * (window - 1) / max(1, layout.rows_per_block - 1))
        return max(1, min(_RUN_BYTES // layout.row_bytes, mixed, self.rows // _FEWEST_RUNS))

    def verify(self) -> None:
        """Read every byte of every shard and compare the checksums.

        Raises:
            InputError: If shards are damaged; the message names each of them.
        """
        check_shards(self.folder, self._checksums)

    def reader(self) -> ShardReader:
        """A reader of the rows, for one thread."""
        return ShardReader(self.folder, self._shapes, self._unverified)

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """The rows from `start` to before `stop` in their order on disk, `(rows, width)`."""
        return self._read(np.array([[start, stop]]))

    def read(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """The rows of the given numbers, `(len(rows), width)`."""
        return self._read(np.stack((rows, np.asarray(rows) + 1), axis=1))

    def _read(self, runs: NDArray[np.int64]) -> torch.Tensor:
        if len(runs) and not (runs.min() >= 0 and runs.max() <= self.rows):
            raise InputError(
                f"rows {runs[:, 0].min()} to {runs[:, 1].max() - 1} asked of {self.folder}, "
                f"which has rows 0 to {self.rows - 1}"
            )
        count = int(np.maximum(runs[:, 1] - runs[:, 0], 0).sum())
        out = torch.empty(count, self.width, dtype=self.dtype)
        reader = self.reader()
        try:
            reader.read_into(out, runs)
        finally:
            reader.close()
        return out

    def context(self, row: int) -> Context:
        """The text that a row comes from."""
        if not 0 <= row < self.rows:
            raise InputError(
                f"row {row} asked of {self.folder}, which has rows 0 to {self.rows - 1}"
            )
        index = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        shape = self._shapes[index]
        path = self.folder / shard_name(index)
        descriptor = open_shard(self.folder, shape)
        try:
            place = np.empty(1, "<i4")
            offset = shape.table_start("index") + 4 * (row - int(self._first_rows[index]))
            read_exactly(descriptor, place.data.cast("B"), offset, path)
            if not 0 <= place[0] < shape.blocks * shape.layout.context_length:
                raise InputError(
                    f"{path}: its index is damaged; remove the cache folder and harvest again"
                )
            block, offset_in_block = divmod(int(place[0]), shape.layout.context_length)
            tables = {}
            for name in ("tokens", "documents", "positions"):
                tables[name] = np.empty(shape.layout.context_length, "<i4")
                start = shape.table_start(name) + 4 * block * shape.layout.context_length
                read_exactly(descriptor, tables[name].data.cast("B"), start, path)
        finally:
            os.close(descriptor)
        return Context(
            tokens=tables["tokens"],
            offset=offset_in_block,
            document=int(tables["documents"][offset_in_block]),
            position=int(tables["positions"][offset_in_block]),
        )

    def contexts(self) -> Iterator[Block]:
        """The token blocks that the rows come from, in the order of the text.

        Raises:
            InputError: If a shard cannot be read.
        """
        for shape in self._shapes:
            path = self.folder / shard_name(shape.index)
            tables = [
                np.empty((shape.blocks, shape.layout.context_length), "<i4") for _ in range(3)
            ]
            descriptor = open_shard(self.folder, shape)
            try:
                for name, table in zip(("tokens", "documents", "positions"), tables, strict=True):
                    read_exactly(descriptor, table.data.cast("B"), shape.table_start(name), path)
            finally:
                os.close(descriptor)
            for block in zip(*(table.astype(np.int64) for table in tables), strict=True):
                yield Block(*block)
