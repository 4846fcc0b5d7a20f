"""The checksums of shards, as fast as the disk gives or the processors hash their bytes."""

import hashlib
import os
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from palinka.activations.files import told_apart
from palinka.activations.shard import ShardShape, shard_name
from palinka.activations.shard_file import open_shard, read_some
from palinka.errors import InputError
from palinka.progress import progress

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
