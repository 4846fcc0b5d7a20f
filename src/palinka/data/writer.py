"""Write access to a cache, shared by any number of processes."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from palinka.data import format as disk
from palinka.data.cache import Cache
from palinka.data.packing import Context
from palinka.errors import InputError, atomic_write


@contextmanager
def locked(path: Path, *, blocking: bool) -> Iterator[bool]:
    """Hold a lock file, which is removed with its lock; False if another process holds it."""
    lock = FileLock(path, blocking=blocking)
    with disk.as_input_error(path), suppress(Timeout):
        lock.acquire()
    try:
        yield lock.is_locked
    finally:
        if lock.is_locked:
            with suppress(OSError):
                path.unlink()  # before the release: a lock on a removed file is not granted
            lock.release()


def is_harvested(folder: Path) -> bool:
    """Check whether a running harvest writes a shard of the cache in `folder`."""
    for path in folder.glob("*.lock"):
        lock = FileLock(path, blocking=False)
        try:
            lock.acquire()
        except (Timeout, PermissionError):  # of a process of another user, perhaps
            return True
        lock.release()
    return False


def read_description(folder: Path) -> disk.CacheKey:
    """Read the key of an unfinished cache."""
    return disk.read_json(
        folder / disk.DESCRIPTION_NAME, f"{disk.FORMAT_NAME}-harvest", disk.CacheKey.from_json
    )


def record_of(
    folder: Path, key: disk.CacheKey, index: int
) -> tuple[disk.ShardShape, str, disk.RowStatistics] | None:
    """Read shape, SHA-256 and sums of a finished shard; None for one that is missing or torn."""

    def parse(members: dict[str, Any]) -> tuple[disk.ShardShape, str, disk.RowStatistics]:
        if members["key"] != key.digest:
            raise ValueError("it belongs to another cache")
        shape = disk.ShardShape(key.layout, index, members["blocks"])
        return shape, members["sha256"], disk.RowStatistics.from_json(members["statistics"])

    path = folder / disk.shard_name(index)
    try:
        record = disk.read_json(path.with_suffix(".json"), f"{disk.FORMAT_NAME}-shard", parse)
        return record if path.stat().st_size == record[0].bytes else None
    except (InputError, OSError):
        return None


# Rows are shuffled, summed, hashed and written in chunks that fit into the processor's cache.
_CHUNK_BYTES = 2**20
_BITS = {2: torch.int16, 4: torch.int32}


def _numbers(bits: NDArray[np.signedinteger], dtype: str) -> NDArray[np.float64]:
    if dtype == "bfloat16":  # the upper half of a float32
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bits.view(dtype).astype(np.float64)


class CacheWriter:
    """Writes one cache; any number of processes may do so at the same time.

    ::

        writer = CacheWriter(root, key)
        for index in range(shards):
            with writer.claim(index) as mine:
                if mine:
                    writer.write(index, activations, contexts)
        cache = writer.finish(shards)
    """

    def __init__(self, root: Path, key: disk.CacheKey) -> None:
        self.key = key
        self.folder = key.folder(root)

    def done(self, index: int) -> bool:
        """Check whether a shard is complete."""
        # The record first: it is removed only once there is a manifest.
        return record_of(self.folder, self.key, index) is not None or Cache.exists(self.folder)

    @contextmanager
    def claim(self, index: int) -> Iterator[bool]:
        """Claim a shard until the block ends; False if it is done or claimed by another process."""
        if self.done(index):
            yield False
            return
        with disk.as_input_error(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with locked(
            (self.folder / disk.shard_name(index)).with_suffix(".lock"), blocking=False
        ) as mine:
            # Another process may have finished it between the first look and the lock.
            mine = mine and not self.done(index)
            description = self.folder / disk.DESCRIPTION_NAME
            if mine and not description.exists():
                with self._lock():
                    disk.write_json(description, f"{disk.FORMAT_NAME}-harvest", self.key.to_json())
            yield mine

    def write(self, index: int, activations: torch.Tensor, contexts: Sequence[Context]) -> None:
        """Shuffle the rows by token and write them as a claimed shard, as a whole or not at all.

        The activations are in the order of contexts and positions, without the leading `skip`
        positions of each context, `(contexts * rows_per_context, width)`.
        """
        layout, path = self.key.layout, self.folder / disk.shard_name(index)
        shape = disk.ShardShape(layout, index, len(contexts))
        given, expected = tuple(activations.shape), (shape.rows, layout.width)
        if given != expected or activations.dtype != layout.torch_dtype:
            found = f"{path.name}: activations {given} of {activations.dtype}"
            raise InputError(f"{found}, expected {expected} of {layout.torch_dtype}")
        # Row, in the order of contexts and positions, at each place of the shard.
        order = disk.permutation(shape.rows, layout.seed, index)
        context, offset = np.divmod(order, layout.rows_per_context)
        places = context * layout.context_length + layout.skip + offset
        tables = [np.stack([getattr(one, name) for one in contexts]) for name in disk.TABLES]
        heads = [table.astype("<i4").tobytes() for table in [*tables, places]]
        # NumPy, on the numbers' bits: thousands of small operations gain nothing from torch's
        # threads, and lose much where other processes keep the cores busy.
        bits = activations.cpu().contiguous().view(_BITS[layout.torch_dtype.itemsize]).numpy()
        step = max(1, _CHUNK_BYTES // layout.row_bytes)
        statistics = disk.RowStatistics(0, 0.0, 0.0, np.zeros(layout.width))
        checksum = hashlib.sha256()
        with disk.as_input_error(path), atomic_write(path) as file:
            for head in (shape.header, *heads):
                checksum.update(head)
                file.write(head)
            for start in range(0, shape.rows, step):
                chunk = bits.take(order[start : start + step], axis=0)
                statistics += disk.RowStatistics.of(_numbers(chunk, layout.dtype))
                checksum.update(piece := chunk.data.cast("B"))
                file.write(piece)
        members: dict[str, disk.JSON] = {
            "key": self.key.digest,
            "blocks": shape.contexts,
            "sha256": checksum.hexdigest(),
            "statistics": statistics.to_json(),
        }
        disk.write_json(path.with_suffix(".json"), f"{disk.FORMAT_NAME}-shard", members)

    def finish(self, shards: int) -> Cache:
        """Write the manifest over `shards` shards, all of which are done, and open the cache."""
        with self._lock():
            if not Cache.exists(self.folder):
                checksums: dict[disk.ShardShape, str] = {}
                statistics = disk.RowStatistics(0, 0.0, 0.0, np.zeros(self.key.layout.width))
                for index in range(max(1, shards)):
                    record = record_of(self.folder, self.key, index)
                    if not record:
                        path = self.folder / disk.shard_name(index)
                        raise InputError(f"{path}: incomplete; rerun harvest to resume")
                    checksums[record[0]] = record[1]
                    statistics += record[2]
                manifest = disk.Manifest(self.key, checksums, statistics)
                disk.write_json(
                    self.folder / disk.MANIFEST_NAME, disk.FORMAT_NAME, manifest.to_json()
                )
        tidy(self.folder)
        return Cache.open(self.folder, self.key)

    def _lock(self) -> AbstractContextManager[bool]:
        """Lock what belongs to the cache as a whole: its manifest and its description."""
        return locked((self.folder / disk.DESCRIPTION_NAME).with_suffix(".lock"), blocking=True)


def tidy(folder: Path) -> None:
    """Remove records, locks and temporary files of a finished cache, as far as permitted."""
    for path in sorted(folder.iterdir()):
        kept = path.name == disk.MANIFEST_NAME or path.suffix == ".safetensors"
        if disk.CACHE_FILE.fullmatch(path.name) and not kept:
            with suppress(OSError):
                path.unlink()
