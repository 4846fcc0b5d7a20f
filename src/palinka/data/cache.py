"""Read access to a cache."""

import hashlib
import os
import stat
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.data.files import told_apart
from palinka.data.format import (
    MANIFEST_NAME,
    CacheKey,
    Manifest,
    RowStatistics,
    ShardShape,
    shard_name,
)
from palinka.data.packing import Block
from palinka.errors import InputError, expanded, progress


def default_cache_dir() -> Path:
    """`$PALINKA_CACHE`, or `~/.cache/palinka/activations`.

    Raises:
        InputError: If there is neither.
    """
    named = os.environ.get("PALINKA_CACHE")
    if named:
        return expanded(named)
    try:
        return Path("~/.cache/palinka/activations").expanduser()
    except RuntimeError as error:  # such as of a container's nameless user
        raise InputError(
            "there is no home folder to keep caches of activations in; set PALINKA_CACHE to a"
            " folder with room for them"
        ) from error


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
            count = read_some(descriptor, target, offset)
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
read_some = _read_in_place if hasattr(os, "preadv") else _read_copied


# Fits into the processor's cache, and is hashed without holding Python's lock.
_PIECE_BYTES = 2**20
# More than there are processors: some wait for the disk while others hash.
_MOST_THREADS = 8


def check_shards(folder: Path, expected: Mapping[ShardShape, str]) -> None:
    """Read every byte of some shards and compare their checksums, several shards at a time.

    Args:
        folder: The cache's folder.
        expected: The SHA-256 of each shard, 64 hex digits.

    Raises:
        InputError: If a shard is missing, of a wrong size or header, or its checksum does not
            match; the message names every such file.
    """
    check = _Check(folder, expected)
    threads = min(_MOST_THREADS, len(expected))
    with (
        progress(
            "checking the cache", sum(shape.bytes for shape in expected), "bytes"
        ) as check.bar,
        ThreadPoolExecutor(max(1, threads), "checksum") as pool,
    ):
        work = [pool.submit(check.work) for _ in range(threads)]
        try:
            for done in work:
                done.result()
        finally:
            check.stop.set()
    problems = [message for _, message in sorted(check.unreadable)]
    if check.mismatched:
        names = ", ".join(shard_name(index) for index in sorted(check.mismatched))
        problems.append(
            f"{folder}: damaged, the checksum does not match in {names}; "
            "remove the folder and harvest again"
        )
    if problems:
        raise InputError(" · ".join(problems))


class _Check:
    """What the threads share that compare the checksums of one cache."""

    def __init__(self, folder: Path, expected: Mapping[ShardShape, str]) -> None:
        self.folder = folder
        self.waiting = deque(expected.items())
        self.unreadable: list[tuple[int, str]] = []
        self.mismatched: list[int] = []
        self.stop = threading.Event()
        self.bar: Any = None
        self._moving = threading.Lock()

    def work(self) -> None:
        """Compare one shard after the other until none is left."""
        # One for all shards, since pages that are touched first are slow to come by.
        buffer = memoryview(bytearray(_PIECE_BYTES))
        while self.waiting and not self.stop.is_set():
            try:
                shape, sha256 = self.waiting.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                found = self._sha256(shape, buffer)
            except InputError as error:
                self.unreadable.append((shape.index, str(error)))
            else:
                if found != sha256:
                    self.mismatched.append(shape.index)

    def _sha256(self, shape: ShardShape, buffer: memoryview) -> str:
        digest = hashlib.sha256()
        offset = 0
        descriptor = open_shard(self.folder, shape)
        try:
            with told_apart(self.folder / shard_name(shape.index)):
                if hasattr(os, "posix_fadvise"):  # not on macOS
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                while not self.stop.is_set() and (count := read_some(descriptor, buffer, offset)):
                    digest.update(buffer[:count])
                    offset += count
                    with self._moving:
                        self.bar.update(count)
        finally:
            os.close(descriptor)
        return digest.hexdigest()


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
