"""Write access to a cache."""

import fcntl
import hashlib
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.data.cache import Cache
from palinka.data.files import Replacement, discard_temporary, replacement, told_apart
from palinka.data.format import (
    DESCRIPTION_NAME,
    FORMAT_NAME,
    FORMAT_VERSION,
    TEMPORARY_SUFFIX,
    CacheKey,
    Manifest,
    RowStatistics,
    ShardEntry,
    ShardRecord,
    ShardShape,
    check_version,
    is_leftover,
    is_temporary,
    parsed,
    read_sealed,
    sealed,
    shard_name,
)
from palinka.errors import InputError

_SECONDS_BETWEEN_TRIES = 0.01


def attend(folder: Path, key: CacheKey) -> int:
    """Say what the folder will be, and that this process is at work on it.

    Only whoever holds the claim of a shard that is not done may do so: then the cache cannot
    be finished meanwhile, and nothing is left in it afterwards.

    Returns:
        A descriptor; the process counts as at work until it is closed.

    Raises:
        InputError: If the folder cannot be written to.
    """
    path = folder / DESCRIPTION_NAME
    with told_apart(path):
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                if not _describe(path, key):
                    time.sleep(_SECONDS_BETWEEN_TRIES)
                continue
            try:
                # Waits for a removal that is under way, which takes the file away.
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if is_attended_by(descriptor, folder):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


def _describe(path: Path, key: CacheKey) -> bool:
    """Write the description, unless it is there; False while another process is writing it.

    Waiting for that process would not do: the file whose lock it holds becomes the description,
    on which it then holds a lock for as long as it harvests.
    """
    members = {"format": FORMAT_NAME + "-harvest", "version": FORMAT_VERSION, **key.to_json()}
    with replacement(path, wait=False) as new:
        # Never twice: others may hold their locks on the first one.
        if new is not None and not path.exists():
            new.file.write(sealed(members))
            new.commit()
        return new is not None


def is_attended_by(descriptor: int, folder: Path) -> bool:
    """Whether a descriptor from `attend` is still that of the folder's description."""
    try:
        there = (folder / DESCRIPTION_NAME).stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def read_description(folder: Path) -> CacheKey:
    """What an unfinished cache is to be.

    Raises:
        InputError: If it does not say, or the file is damaged.
    """
    path = folder / DESCRIPTION_NAME
    members = read_sealed(path)
    check_version(path, members, FORMAT_NAME + "-harvest")
    return parsed(path, lambda: CacheKey.from_json(members))


def record_path(folder: Path, index: int) -> Path:
    """Where the record of a shard lies."""
    return folder / Path(shard_name(index)).with_suffix(".json")


def record_of(folder: Path, key: CacheKey, index: int) -> ShardRecord | None:
    """What is known of a complete shard; a damaged or partial one is as good as none."""
    path = folder / shard_name(index)
    try:
        record = ShardRecord.read(record_path(folder, index), key.digest, key.layout.width)
        size = path.stat(follow_symlinks=False).st_size
    except (InputError, OSError):
        return None
    whole = size == ShardShape(key.layout, index, record.entry.blocks).bytes
    return record if whole else None


@contextmanager
def unattended(folder: Path) -> Iterator[bool]:
    """Keep others from going to work on a folder; False if a living process is at work."""
    path = folder / DESCRIPTION_NAME
    with told_apart(path):
        try:
            # Network file systems lock exclusively only what is open for writing.
            mode = os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY
            descriptor = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            descriptor = None
    if descriptor is None:
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


# Rows are shuffled, summed, hashed and written piece by piece: small enough for the processor's
# cache, and never a second copy of the shard.
_PIECE_BYTES = 2**20

_BITS = {2: torch.int16, 4: torch.int32}


class ShardClaim:
    """The right to write one shard, held by this process alone; from `CacheWriter.claim`."""

    def __init__(self, key: CacheKey, index: int, new: Replacement, record: Path) -> None:
        self._key = key
        self._index = index
        self._new = new
        self._record = record

    def write(
        self,
        activations: torch.Tensor,
        tokens: NDArray[np.int64],
        documents: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> None:
        """Shuffle the rows by token and write them as one shard, durably.

        Args:
            activations: Rows in the order of blocks and positions (leading `skip` positions of
                each block left out), in the layout's dtype, on any device,
                `(blocks * rows_per_block, width)`.
            tokens: Token ids, `(blocks, context_length)`.
            documents: Document number of each token, `(blocks, context_length)`.
            positions: Place of each token in its document, `(blocks, context_length)`.

        Raises:
            InputError: If shapes or dtype do not fit the layout, if a row holds NaN or
                infinities, or if the file cannot be written (no space left, read-only). Nothing
                half-written stays behind.
        """
        path = self._new.path
        shape = ShardShape(self._key.layout, self._index, len(tokens))
        self._check(shape, activations, tokens, documents, positions)
        order = shape.order()
        checksum = hashlib.sha256()
        with told_apart(path):
            tables = (tokens, documents, positions, shape.places(order))
            for piece in (shape.header, *(np.asarray(table, "<i4").tobytes() for table in tables)):
                self._append(piece, checksum)
            statistics = self._append_rows(activations.cpu(), order, checksum)
            self._new.commit()
        entry = ShardEntry(shape.blocks, checksum.hexdigest())
        ShardRecord(entry, statistics).write(self._record, self._key.digest)

    def _append_rows(
        self, activations: torch.Tensor, order: NDArray[np.int64], checksum: "hashlib._Hash"
    ) -> RowStatistics:
        """Write the rows in the given order, piece by piece.

        With NumPy, on the numbers' bits: thousands of small operations gain nothing from torch's
        threads, and lose much where other processes keep the cores busy.
        """
        layout = self._key.layout
        bits = activations.contiguous().view(_BITS[layout.torch_dtype.itemsize]).numpy()
        step = max(1, _PIECE_BYTES // layout.row_bytes)
        statistics = []
        for start in range(0, len(order), step):
            rows = bits.take(order[start : start + step], axis=0)
            with np.errstate(invalid="ignore"):
                statistics.append(RowStatistics.of(_numbers(rows, layout.dtype)))
            if not np.isfinite(statistics[-1].sum_of_squared_norms):
                raise InputError(f"{self._new.path}: {_not_finite(activations)}")
            self._append(rows.data.cast("B"), checksum)
        return RowStatistics.merged(statistics, layout.width)

    def _append(self, piece: bytes | memoryview, checksum: "hashlib._Hash") -> None:
        checksum.update(piece)
        self._new.file.write(piece)

    def _check(
        self,
        shape: ShardShape,
        activations: torch.Tensor,
        tokens: NDArray[np.int64],
        documents: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> None:
        layout, name = self._key.layout, self._new.path.name
        if not 1 <= shape.blocks <= layout.blocks_per_shard:
            raise InputError(
                f"{name}: {shape.blocks} blocks given, expected 1 to {layout.blocks_per_shard}"
            )
        if activations.shape != (shape.rows, layout.width):
            raise InputError(
                f"{name}: activations of shape {tuple(activations.shape)} given, expected "
                f"({shape.rows}, {layout.width}) for {shape.blocks} blocks"
            )
        if activations.dtype != layout.torch_dtype:
            raise InputError(
                f"{name}: activations in {activations.dtype} given, expected {layout.torch_dtype}"
            )
        for kind, table in (("tokens", tokens), ("documents", documents), ("positions", positions)):
            if table.shape != (shape.blocks, layout.context_length):
                raise InputError(
                    f"{name}: {kind} of shape {table.shape} given, expected "
                    f"({shape.blocks}, {layout.context_length})"
                )
            if table.min() < -(2**31) or table.max() >= 2**31:
                raise InputError(f"{name}: {kind} beyond 32 bits given, which a cache cannot store")


class CacheWriter:
    """Writes one cache; any number of processes may do so at the same time.

    ::

        writer = CacheWriter(root, key)
        for index in range(shards):            # several ranks: each its own share, or all of them
            with writer.claim(index) as shard:
                if shard is not None:          # None: done, or in the hands of another process
                    shard.write(activations, tokens, documents, positions)
        cache = writer.finish(shards)

    Args:
        root: Folder of all caches; the cache's own folder is `key.folder(root)`.
        key: What determines the rows.

    Raises:
        InputError: If the folder cannot be made.
    """

    def __init__(self, root: Path, key: CacheKey) -> None:
        self.key = key
        self.folder = key.folder(root)
        self._attending: int | None = None
        self._leave: weakref.finalize[[int], CacheWriter] | None = None
        with told_apart(self.folder):
            self._made = [f for f in (self.folder, *self.folder.parents) if not f.exists()]
            self._make_folder()

    @property
    def finished(self) -> bool:
        """Whether the manifest is there, and the cache therefore complete."""
        return Cache.exists(self.folder)

    def done(self, index: int) -> bool:
        """Whether shard `index` is complete."""
        # The record first: it is removed only once there is a manifest.
        return record_of(self.folder, self.key, index) is not None or self.finished

    def missing(self, shards: int) -> list[int]:
        """Which of the first `shards` shards are not complete yet, in ascending order."""
        return [index for index in range(shards) if not self.done(index)]

    @contextmanager
    def claim(self, index: int) -> Iterator[ShardClaim | None]:
        """Take a shard for this process, if it is neither done nor taken.

        A claim ends with the `with` block, or with the process, however it dies. What an
        unfinished claim wrote is removed.

        Raises:
            InputError: If the folder cannot be written to.
        """
        if self.done(index):
            yield None
            return
        # Another run that had nothing to write may have abandoned it.
        with told_apart(self.folder):
            self._make_folder()
        with replacement(self.folder / shard_name(index), wait=False) as new:
            # Another process may have finished it between the first look and the lock.
            if new is None or self.done(index):
                yield None
            else:
                self._attend()
                yield ShardClaim(self.key, index, new, record_path(self.folder, index))

    def abandon(self) -> None:
        """Remove the folders that this writer made, unless something has come to lie in them."""
        self.close()
        with suppress(OSError):
            if [path.name for path in self.folder.iterdir()] == [DESCRIPTION_NAME]:
                (self.folder / DESCRIPTION_NAME).unlink()
                self.folder.rmdir()
        with suppress(OSError):
            for folder in self._made:
                if folder.exists():
                    folder.rmdir()

    def close(self) -> None:
        """No longer count as at work on the cache."""
        if self._leave is not None:
            self._leave()

    def finish(self, shards: int) -> Cache:
        """Write the manifest over `shards` shards, which makes the folder a cache, and open it.

        Does nothing but open the cache where the manifest is there already.

        Raises:
            InputError: If shards are missing; the message names the first.
        """
        if not self.finished:
            records = [record_of(self.folder, self.key, index) for index in range(shards)]
            complete = [record for record in records if record is not None]
            # Another process that finished meanwhile has removed the records.
            if not self.finished:
                if len(complete) < len(records) or not records:
                    raise InputError(
                        f"{self.folder / shard_name(records.index(None) if records else 0)}: not "
                        "written yet; harvest again, which goes on at the first missing shard"
                    )
                statistics = (record.statistics for record in complete)
                Manifest(
                    self.key,
                    tuple(record.entry for record in complete),
                    RowStatistics.merged(statistics, self.key.layout.width),
                ).write(self.folder)
        tidy(self.folder)
        self.close()
        return Cache.open(self.folder, self.key)

    def _attend(self) -> None:
        if self._leave is not None and self._leave.alive:
            assert self._attending is not None
            if is_attended_by(self._attending, self.folder):
                return
            self._leave()
        self._attending = attend(self.folder, self.key)
        self._leave = weakref.finalize(self, os.close, self._attending)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # such as in a home folder that cannot be written
            raise InputError(
                f"{self.folder}: a folder for activations cannot be made there ({error.strerror});"
                " set PALINKA_CACHE or data.cache_dir to another one"
            ) from error


def tidy(folder: Path) -> None:
    """Remove what a finished cache does not need, as far as this process may.

    What others are still writing stays; it will be what is there already, or nothing.
    """
    for path in sorted(folder.iterdir()):
        with suppress(InputError, OSError):
            if is_temporary(path.name):
                discard_temporary(path.with_name(path.name.removesuffix(TEMPORARY_SUFFIX)))
            elif is_leftover(path.name):
                path.unlink()


def _numbers(bits: NDArray[np.signedinteger], dtype: str) -> NDArray[np.float64]:
    if dtype == "bfloat16":
        # The upper half of a float32.
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bits.view(dtype).astype(np.float64)


def _not_finite(activations: torch.Tensor) -> str:
    bad = int((~torch.isfinite(activations)).any(dim=1).sum())
    message = f"{bad} of {len(activations)} rows hold NaN or infinities"
    if activations.dtype == torch.float16 and not bool(torch.isnan(activations).any()):
        return f"{message}: too large for float16 (over 65504); choose dtype bfloat16 or float32"
    return f"{message}; check the language model and the dtype it runs in"
