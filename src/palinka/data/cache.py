"""Read access to a cache."""

import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from palinka.data import format as disk
from palinka.data.packing import Context
from palinka.errors import InputError, expanded, progress


def default_cache_dir() -> Path:
    """Default cache directory.

    `$PALINKA_CACHE`, or `palinka/activations` in `$XDG_CACHE_HOME` or `~/.cache`.
    """
    if named := os.environ.get("PALINKA_CACHE"):
        return expanded(named)
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        return base / "palinka" / "activations"
    except RuntimeError as error:  # such as for a container's nameless user
        raise InputError("there is no home folder to keep caches in; set PALINKA_CACHE") from error


@dataclass(frozen=True)
class RowContext:
    """Text around a row."""

    tokens: NDArray[np.int32]  # ids of the row's context, (context_length,)
    offset: int  # of the row's token in the context
    document: int  # number of the token's document in the corpus
    position: int  # of the token in its document; -1 for a beginning-of-text token


Integers = NDArray[np.int32]
_REMEDY = "remove the cache folder and harvest again"


def open_shard(folder: Path, shape: disk.ShardShape) -> FileIO:
    """Open a shard without a buffer, and check its size and header."""
    path = folder / disk.shard_name(shape.index)
    with disk.as_input_error(path):
        file = path.open("rb", buffering=0)
        size = os.fstat(file.fileno()).st_size
        header = os.pread(file.fileno(), len(shape.header), 0)
    if size == shape.bytes and header == shape.header:
        return file
    file.close()
    fault = "damaged header" if size == shape.bytes else f"{size} bytes, expected {shape.bytes}"
    raise InputError(f"{path}: {fault}; {_REMEDY}")


def read_exactly(file: FileIO, target: memoryview, offset: int) -> None:
    """Fill `target` with the bytes at `offset`."""
    try:
        while target:
            count = os.preadv(file.fileno(), [target], offset)
            if not count:
                raise InputError(f"{file.name}: ended early; {_REMEDY}")
            target, offset = target[count:], offset + count
    except OSError:
        with disk.as_input_error(file.name):
            raise


_MAX_THREADS = 8  # more than cores, as some wait for the disk; hashing leaves Python's lock
_MAX_OPEN = 256  # below the usual limit of 1,024 open files per process


class ShardReader:
    """Reads rows of a cache for one thread; shards are opened, and checked, on first touch."""

    def __init__(self, cache: "Cache") -> None:
        self._cache = cache
        self._row_bytes = cache.key.layout.row_bytes
        # Offset in each shard of the cache's first row, if it lay there.
        self._origins = [
            shape.activations_start - first * self._row_bytes
            for shape, first in zip(cache.shapes, cache.first_rows, strict=False)
        ]
        self._open: OrderedDict[int, FileIO] = OrderedDict()

    def read_into(self, out: torch.Tensor, runs: NDArray[np.int64]) -> None:
        """Fill `out`, `(rows, width)`, with runs of rows, one after the other.

        `runs`, `(runs, 2)`, are the first row and the row after the last of each.
        """
        borders = self._cache.first_rows
        pieces = []  # shard, first row, row after the last
        for first, stop in runs.tolist():
            while first < stop:
                shard = bisect_right(borders, first) - 1
                pieces.append((shard, first, min(stop, borders[shard + 1])))
                first = pieces[-1][2]
        if new := sorted(self._cache.unverified.intersection(shard for shard, _, _ in pieces)):
            self._cache.verify(new)
            self._cache.unverified.difference_update(new)
        target = out.view(torch.uint8).reshape(-1).numpy().data
        for shard, first, stop in pieces:
            size = (stop - first) * self._row_bytes
            offset = self._origins[shard] + first * self._row_bytes
            read_exactly(self._file(shard), target[:size], offset)
            target = target[size:]

    def _file(self, index: int) -> FileIO:
        if index in self._open:
            self._open.move_to_end(index)
        else:
            if len(self._open) >= _MAX_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[index] = open_shard(self._cache.folder, self._cache.shapes[index])
        return self._open[index]

    def close(self) -> None:
        """Close all shards."""
        while self._open:
            self._open.popitem()[1].close()


_RUN_BYTES = 256 * 2**10  # one read should be long enough to keep a disk busy,
_NEIGHBORS = 0.1  # but in a run, a row should meet few others of its own context,
_MIN_RUNS = 1024  # and even a small cache should be shuffled well


class Cache:
    """A finished cache on disk, open for reading. Use `Cache.open`.

    Attributes:
        identity: Digest of the key, which a checkpoint remembers.
        bytes: Size of all shards.
        first_rows: First row of every shard, and the number of all rows.
        run_rows: Number of neighboring rows that a shuffled order keeps together.
        unverified: Shards whose checksums are compared when they are first read, by any reader.
    """

    def __init__(self, folder: Path, manifest: disk.Manifest, verify_shards: bool = False) -> None:
        layout = manifest.key.layout
        self.folder = folder
        self.key = manifest.key
        self.identity = manifest.key.digest
        self.width = layout.width
        self.dtype = layout.torch_dtype
        self.statistics = manifest.statistics
        self.shapes = list(manifest.checksums)
        self.bytes = sum(shape.bytes for shape in self.shapes)
        self.first_rows = [0, *accumulate(shape.rows for shape in self.shapes)]
        self.rows = self.first_rows[-1]
        self._checksums = manifest.checksums
        self.unverified = set(range(len(self.shapes) if verify_shards else 0))
        window = layout.contexts_per_shard * layout.rows_per_context
        # A run of r rows of a shuffled window has (r-1)(context-1)/(window-1) others of a row's
        # own context.
        mixed = 1 + int(_NEIGHBORS * (window - 1) / max(1, layout.rows_per_context - 1))
        self.run_rows = max(1, min(_RUN_BYTES // layout.row_bytes, mixed, self.rows // _MIN_RUNS))

    def __str__(self) -> str:
        shape = f"{self.rows:,} rows of {self.width} {str(self.dtype).removeprefix('torch.')}"
        size = tqdm.format_sizeof(self.bytes, "B")
        return f"{self.key.settings.get('split')} activations: {shape}, {size}"

    def __repr__(self) -> str:
        return f"Cache({self}, {self.folder})"

    @staticmethod
    def exists(folder: Path) -> bool:
        """Check whether `folder` holds a finished cache, that is, a manifest."""
        with disk.as_input_error(folder):
            return (folder / disk.MANIFEST_NAME).exists()

    @classmethod
    def open(
        cls, folder: Path, key: disk.CacheKey | None = None, *, verify_shards: bool = False
    ) -> "Cache":
        """Open a finished cache and check everything but the checksums of its shards.

        With `verify_shards`, those are compared when rows are first read from a shard. An
        `InputError` names every shard that is missing or of a wrong size or header.
        """
        if not cls.exists(folder):
            raise InputError(
                f"{folder}: no finished cache (no {disk.MANIFEST_NAME}); harvest it first"
            )
        manifest = disk.Manifest.read(folder)
        if key is not None and manifest.key.digest != key.digest:
            raise InputError(f"{folder}: a cache of other settings; remove it and harvest again")
        cache = cls(folder, manifest, verify_shards)
        cache._check(cache.shapes, lambda shape: open_shard(folder, shape).close())
        return cache

    def verify(self, shards: Iterable[int] | None = None) -> None:
        """Read every byte of some shards, or of all; reject naming each missing or damaged one."""
        chosen = self.shapes if shards is None else [self.shapes[index] for index in shards]

        def compare(shape: disk.ShardShape) -> None:
            with open_shard(self.folder, shape) as file, disk.as_input_error(file.name):
                if hashlib.file_digest(file, "sha256").hexdigest() != self._checksums[shape]:
                    raise InputError(f"{file.name}: the checksum does not match; {_REMEDY}")

        self._check(chosen, compare)

    def _check(
        self, shapes: list[disk.ShardShape], check: Callable[[disk.ShardShape], None]
    ) -> None:
        """Check shards on several threads; reject naming each with an `InputError`."""
        problems = []
        pool = ThreadPoolExecutor(_MAX_THREADS, "checksum")
        with progress("checking the cache", sum(shape.bytes for shape in shapes), "bytes") as bar:
            try:
                for shape, done in [(shape, pool.submit(check, shape)) for shape in shapes]:
                    try:
                        done.result()
                    except InputError as error:
                        problems.append(str(error))
                    bar.update(shape.bytes)
            finally:
                pool.shutdown(cancel_futures=True)
        if problems:
            raise InputError(" · ".join(problems))

    def reader(self) -> ShardReader:
        """Create a reader of the rows, for one thread."""
        return ShardReader(self)

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Read the rows from `start` to before `stop` in their order on disk, `(rows, width)`."""
        out = torch.empty(stop - start, self.width, dtype=self.dtype)
        with closing(self.reader()) as reader:
            reader.read_into(out, np.array([[start, stop]]))
        return out

    def context(self, row: int) -> RowContext:
        """Read the text around a row."""
        if not 0 <= row < self.rows:
            raise InputError(f"row {row} is out of range; expected 0 to {self.rows - 1}")
        index = bisect_right(self.first_rows, row) - 1
        tables, places = _read_tables(self.folder, self.shapes[index])
        context, offset = divmod(int(places[row - self.first_rows[index]]), tables.shape[2])
        tokens, documents, positions = tables[:, context]
        return RowContext(tokens, offset, int(documents[offset]), int(positions[offset]))

    def tokens(self) -> NDArray[np.int32]:
        """Read the token id of each row, `(rows,)`."""
        read = (_read_tables(self.folder, shape) for shape in self.shapes)
        return np.concatenate([tables[0].ravel()[places] for tables, places in read])

    def contexts(self) -> Iterator[Context]:
        """Read the contexts that the rows come from, in the order of the text."""
        for shape in self.shapes:
            tables, _ = _read_tables(self.folder, shape)
            for context in zip(*tables.astype(np.int64), strict=True):
                yield Context(*context)


@lru_cache(maxsize=1)  # rows in ascending order read each shard once
def _read_tables(folder: Path, shape: disk.ShardShape) -> tuple[Integers, Integers]:
    """Read the tables of a shard, `(3, contexts, length)`, and the place of each of its rows."""
    size = (len(disk.TABLES), shape.contexts, shape.layout.context_length)
    count = int(np.prod(size))
    found = np.empty(count + shape.rows, "<i4")
    with open_shard(folder, shape) as file:
        read_exactly(file, found.data.cast("B"), len(shape.header))
    return found[:count].reshape(size), found[count:]
