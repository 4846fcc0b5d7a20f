"""Read access to a cache."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.data.format import (
    MANIFEST_NAME,
    CacheKey,
    Manifest,
    RowStatistics,
    ShardShape,
    as_input_error,
    shard_name,
)
from palinka.data.packing import Context
from palinka.errors import InputError, expanded, progress

TABLES = ("tokens", "documents", "positions")


def default_cache_dir() -> Path:
    """Default cache directory: `$PALINKA_CACHE`, or `~/.cache/palinka/activations`."""
    named = os.environ.get("PALINKA_CACHE")
    try:
        return expanded(named) if named else Path("~/.cache/palinka/activations").expanduser()
    except RuntimeError as error:  # such as for a container's nameless user
        raise InputError(
            "no home folder was found to keep caches of activations in; set PALINKA_CACHE to a"
            " folder with room for them"
        ) from error


@dataclass(frozen=True)
class RowContext:
    """Text around a row.

    Attributes:
        tokens: Token ids of the row's context, `(context_length,)`.
        offset: Place of the row's token in the context.
        document: Number of the token's document in the corpus.
        position: Place of the token in its document; -1 for a beginning-of-text token.
    """

    tokens: NDArray[np.int32]
    offset: int
    document: int
    position: int


def open_shard(folder: Path, shape: ShardShape) -> FileIO:
    """Open a shard without a buffer, and check its size and header.

    Raises:
        InputError: If it cannot be opened or is damaged.
    """
    path = folder / shard_name(shape.index)
    with as_input_error(path):
        file = path.open("rb", buffering=0)
        size = os.fstat(file.fileno()).st_size
        header = os.pread(file.fileno(), len(shape.header), 0)
    if size == shape.bytes and header == shape.header:
        return file
    file.close()
    fault = (
        f"{size} bytes, expected {shape.bytes}" if size != shape.bytes else "its header is damaged"
    )
    raise InputError(f"{path}: {fault}; remove the cache folder and harvest again")


def read_exactly(file: FileIO, target: memoryview, offset: int, path: Path) -> None:
    """Fill `target` with the bytes at `offset`.

    Raises:
        InputError: If the file ends before, or cannot be read.
    """
    with as_input_error(path):
        while target:
            count = os.preadv(file.fileno(), [target], offset)
            if not count:
                raise InputError(f"{path}: ended early; remove the cache folder and harvest again")
            target, offset = target[count:], offset + count


# Hashing leaves Python's lock; more threads than cores, as some wait for the disk.
_MAX_THREADS = 8


def check_shards(folder: Path, expected: Mapping[ShardShape, str]) -> None:
    """Compare the checksums of some shards, several at a time.

    Args:
        folder: The cache's folder.
        expected: SHA-256 of each shard, 64 hex digits.

    Raises:
        InputError: Naming every shard that is missing or damaged.
    """

    def sha256(shape: ShardShape) -> str:
        with open_shard(folder, shape) as file, as_input_error(folder / shard_name(shape.index)):
            return hashlib.file_digest(file, "sha256").hexdigest()

    problems, damaged = [], []
    pool = ThreadPoolExecutor(_MAX_THREADS, "checksum")
    with progress("checking the cache", sum(shape.bytes for shape in expected), "bytes") as bar:
        try:
            found = {shape: pool.submit(sha256, shape) for shape in expected}
            for shape, checksum in found.items():
                try:
                    if checksum.result() != expected[shape]:
                        damaged.append(shard_name(shape.index))
                except InputError as error:
                    problems.append(str(error))
                bar.update(shape.bytes)
        finally:
            pool.shutdown(cancel_futures=True)
    if damaged:
        problems.append(
            f"{folder}: damaged, the checksum does not match in {', '.join(damaged)}; "
            "remove the folder and harvest again"
        )
    if problems:
        raise InputError(" · ".join(problems))


# Below the usual limit of 1,024 open files per process.
_MAX_OPEN = 256


class ShardReader:
    """Reads rows of a cache for one thread; shards are opened, and checked, on first touch.

    Args:
        folder: The cache's folder.
        shapes: All its shards.
        unverified: SHA-256 of the shards whose content is compared with it before rows are read
            from them; each is removed once it has been compared.
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
        self._open: OrderedDict[int, FileIO] = OrderedDict()

    def read_into(self, out: torch.Tensor, runs: NDArray[np.int64]) -> None:
        """Fill `out` with runs of rows, one after the other.

        Args:
            out: Contiguous, in the stored dtype, `(rows, width)`.
            runs: First row and row after the last of each run, `(runs, 2)`.

        Raises:
            InputError: If a shard is missing or damaged.
        """
        shards, first, rows = cut_at(self._first_rows, joined(runs))
        if self._unverified:
            self._verify(shards)
        target = out.view(torch.uint8).reshape(-1).numpy().data
        row_bytes = out.shape[1] * out.itemsize
        offsets = self._starts[shards] + (first - self._first_rows[shards]) * row_bytes
        ends = np.cumsum(rows) * row_bytes
        # Python integers, since a batch is hundreds of runs.
        places = np.stack((shards, offsets, ends - rows * row_bytes, ends), axis=1).tolist()
        for index, offset, start, stop in places:
            read_exactly(self._file(index), target[start:stop], offset, self._paths[index])

    def _verify(self, shards: NDArray[np.int64]) -> None:
        """Compare the checksums of shards that are read for the first time."""
        touched = [self._shapes[index] for index in np.unique(shards).tolist()]
        unverified = dict(self._unverified)
        expected = {shape: unverified[shape] for shape in touched if shape in unverified}
        if expected:
            check_shards(self._folder, expected)
        for shape in expected:
            self._unverified.pop(shape, None)

    def _file(self, index: int) -> FileIO:
        if index in self._open:
            self._open.move_to_end(index)
        else:
            if len(self._open) >= _MAX_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[index] = open_shard(self._folder, self._shapes[index])
        return self._open[index]

    def close(self) -> None:
        """Close all shards."""
        while self._open:
            self._open.popitem()[1].close()


def joined(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join each run of rows that begins where the one before it ends, `(runs, 2)`."""
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
            dropped.

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


# One read should be long enough to keep a disk busy ...
_RUN_BYTES = 256 * 2**10
# ... but in a run, a row should meet few others of its own context,
_NEIGHBORS = 0.1
# and even a small cache should be shuffled well.
_MIN_RUNS = 1024


class Cache:
    """A finished cache on disk, open for reading. Use `Cache.open`.

    Attributes:
        folder: The cache's own folder.
        key: Layout and settings.
        statistics: Sums over all rows.
    """

    def __init__(self, folder: Path, manifest: Manifest, verify_shards: bool = False) -> None:
        self.folder = folder
        self.key: CacheKey = manifest.key
        self.statistics: RowStatistics = manifest.statistics
        self._shapes = manifest.shapes
        sums = (entry.sha256 for entry in manifest.shards)
        self._checksums = dict(zip(self._shapes, sums, strict=True))
        # Shared by all readers, so that each shard is compared once.
        self._unverified = dict(self._checksums) if verify_shards else {}
        self._first_rows = np.cumsum([0] + [shape.rows for shape in self._shapes])

    @staticmethod
    def exists(folder: Path) -> bool:
        """Check whether `folder` holds a finished cache, that is, a manifest."""
        with as_input_error(folder):
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
            InputError: If the manifest is missing, damaged, of another version or of another
                key; or naming every shard that is missing or of a wrong size or header.
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
                open_shard(folder, shape).close()
            except InputError as error:
                problems.append(str(error))
        if problems:
            raise InputError(" · ".join(problems))
        return cls(folder, manifest, verify_shards)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._first_rows[-1])

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self._shapes)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shape.bytes for shape in self._shapes)

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self.key.layout.width

    @property
    def dtype(self) -> torch.dtype:
        """Stored type."""
        return self.key.layout.torch_dtype

    @property
    def identity(self) -> str:
        """Digest of the key, which a checkpoint remembers."""
        return self.key.digest

    @property
    def run_rows(self) -> int:
        """Number of neighboring rows that a shuffled order keeps together."""
        layout = self.key.layout
        window = layout.contexts_per_shard * layout.rows_per_context
        # A run of r rows of a shuffled window has (r-1)(context-1)/(window-1) others of a row's
        # own context.
        mixed = 1 + int(_NEIGHBORS * (window - 1) / max(1, layout.rows_per_context - 1))
        return max(1, min(_RUN_BYTES // layout.row_bytes, mixed, self.rows // _MIN_RUNS))

    def verify(self) -> None:
        """Read every byte of every shard and compare the checksums.

        Raises:
            InputError: Naming every damaged shard.
        """
        check_shards(self.folder, self._checksums)

    def reader(self) -> ShardReader:
        """Create a reader of the rows, for one thread."""
        return ShardReader(self.folder, self._shapes, self._unverified)

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Read the rows from `start` to before `stop` in their order on disk, `(rows, width)`."""
        if not 0 <= start <= stop <= self.rows:
            raise InputError(
                f"rows {start} to {stop - 1} asked of {self.folder}, which has rows 0 to "
                f"{self.rows - 1}"
            )
        out = torch.empty(stop - start, self.width, dtype=self.dtype)
        with closing(self.reader()) as reader:
            reader.read_into(out, np.array([[start, stop]]))
        return out

    def context(self, row: int) -> RowContext:
        """Read the text around a row."""
        if not 0 <= row < self.rows:
            raise InputError(
                f"row {row} asked of {self.folder}, which has rows 0 to {self.rows - 1}"
            )
        index = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        shape = self._shapes[index]
        length = shape.layout.context_length
        with open_shard(self.folder, shape) as file:
            place = self._table(file, shape, "index", row - int(self._first_rows[index]), 1)[0]
            start = int(place) // length * length
            tokens, documents, positions = (
                self._table(file, shape, name, start, length) for name in TABLES
            )
        offset = int(place) - start
        return RowContext(tokens, offset, int(documents[offset]), int(positions[offset]))

    def contexts(self) -> Iterator[Context]:
        """Read the contexts that the rows come from, in the order of the text."""
        for shape in self._shapes:
            size = (shape.contexts, shape.layout.context_length)
            with open_shard(self.folder, shape) as file:
                tables = [
                    self._table(file, shape, name, 0, size[0] * size[1]).reshape(size)
                    for name in TABLES
                ]
            for context in zip(*(table.astype(np.int64) for table in tables), strict=True):
                yield Context(*context)

    def _table(
        self, file: FileIO, shape: ShardShape, name: str, start: int, count: int
    ) -> NDArray[np.int32]:
        """Read entries of a flattened table, or of the index, of a shard."""
        found = np.empty(count, "<i4")
        path = self.folder / shard_name(shape.index)
        read_exactly(file, found.data.cast("B"), shape.table_start(name) + 4 * start, path)
        return found
