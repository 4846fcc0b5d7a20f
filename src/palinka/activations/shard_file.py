"""Opening shards, and reading their bytes."""

import os
import stat
from pathlib import Path

from palinka.activations.files import told_apart
from palinka.activations.shard import ShardShape, shard_name
from palinka.errors import InputError


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
