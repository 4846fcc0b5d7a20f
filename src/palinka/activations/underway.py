"""What an unfinished cache says of itself, and who is at work on it.

`harvest.json` is written when the first shard is begun, and removed once there is a manifest.
Every process that writes shards holds a shared lock on it, which ends with the process.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from palinka.activations.contents import DESCRIPTION_NAME
from palinka.activations.files import replacement, told_apart
from palinka.activations.key import FORMAT_VERSION, CacheKey
from palinka.activations.manifest import FORMAT_NAME, ShardRecord, check_version, parsed
from palinka.activations.sealed import read_sealed, sealed
from palinka.activations.shard import ShardShape, shard_name
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
