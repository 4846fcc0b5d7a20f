"""Removing caches, and nothing else."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from palinka.activations.contents import DESCRIPTION_NAME, is_part, is_temporary
from palinka.activations.files import told_apart
from palinka.activations.manifest import MANIFEST_NAME
from palinka.activations.underway import unattended
from palinka.errors import InputError


@dataclass(frozen=True)
class Removal:
    """What a removal did.

    Attributes:
        bytes: The size of the files that are gone.
        left: Names of what stayed in the folder; the folder itself is gone if there are none.
    """

    bytes: int
    left: tuple[str, ...]


def remove_cache(folder: Path) -> Removal:
    """Remove the files of one cache, finished or not, and its folder if nothing else is in it.

    The manifest goes first, so that no reader ever takes half a cache for a whole one; whoever
    harvests it anew meanwhile is not disturbed. Only ordinary files with the names of a cache's
    files are removed, and no link is followed.

    Args:
        folder: The cache's own folder.

    Raises:
        InputError: If a living process is harvesting it, or a file cannot be removed.
    """
    with told_apart(folder), _opened(folder) as directory, unattended(folder) as free:
        if not free:
            raise InputError(
                f"{folder}: a living process is harvesting it; stop that first, then remove it"
            )
        there = {name: os.lstat(name, dir_fd=directory) for name in _names(directory)}
        size = 0
        for name in sorted(filter(is_part, there), key=_order):
            with told_apart(folder / name):
                if _remove(name, there[name], directory):
                    size += there[name].st_size
            if name == MANIFEST_NAME:
                os.fsync(directory)
        left = tuple(_names(directory))
        if not left:
            with suppress(OSError):  # a harvest may just have begun in it
                folder.rmdir()
    return Removal(size, left)


def _order(name: str) -> tuple[int, str]:
    # The description last: a removal that is killed leaves a cache that says what it was.
    return {MANIFEST_NAME: 0, DESCRIPTION_NAME: 2}.get(name, 1), name


def _names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A descriptor of the folder, so that no link that takes its place leads elsewhere."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield directory
    finally:
        os.close(directory)


def _remove(name: str, before: os.stat_result, directory: int) -> bool:
    """Remove an ordinary file that is still the one it was; whether it was removed."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        if not stat.S_ISREG(before.st_mode):
            return False
        if is_temporary(name):
            descriptor = os.open(name, flags, dir_fd=directory)
            try:
                # Whoever holds its lock is about to write the shard anew.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return _unlink(name, before, directory)
            finally:
                os.close(descriptor)
        return _unlink(name, before, directory)
    except (FileNotFoundError, BlockingIOError):
        return False


def _unlink(name: str, before: os.stat_result, directory: int) -> bool:
    same = os.path.samestat(before, os.lstat(name, dir_fd=directory))
    if same:
        os.unlink(name, dir_fd=directory)
    return same
