"""Caches on disk: listing and removal."""

import fcntl
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from palinka.data.cache import Cache
from palinka.data.files import told_apart
from palinka.data.format import DESCRIPTION_NAME, MANIFEST_NAME, CacheKey, is_part, is_temporary
from palinka.data.writer import read_description, record_of, unattended
from palinka.errors import InputError

_RECORD = re.compile(r"shard-([0-9]+)\.json")

State = Literal["complete", "harvesting", "incomplete", "damaged", "no cache"]


@dataclass(frozen=True)
class StoredCache:
    """What lies under one name in a folder of caches.

    Attributes:
        path: Where it lies.
        state: `"complete"`; `"harvesting"` while a living process is at work on it;
            `"incomplete"` if none is; `"damaged"`; or `"no cache"`.
        key: What determines its rows, if it says so.
        rows: How many rows are there so far, if that is known.
        bytes: The size of all its files.
        problem: What is wrong with it, if anything is; may hold any text.
    """

    path: Path
    state: State
    key: CacheKey | None = None
    rows: int | None = None
    bytes: int = 0
    problem: str = ""


def stored_caches(root: Path) -> list[StoredCache]:
    """Everything in a folder of caches, by name; links are not followed.

    Raises:
        InputError: If the folder cannot be read.
    """
    with told_apart(root):
        paths = sorted(root.iterdir())
    return [_look(path) for path in paths]


def _look(path: Path) -> StoredCache:
    try:
        with told_apart(path):
            if path.is_symlink():
                return StoredCache(path, "no cache", problem=f"{path}: a link, not followed")
            if not path.is_dir():
                return StoredCache(path, "no cache", problem=f"{path}: not a folder")
            parts = ordinary_parts(path)
    except InputError as error:
        return StoredCache(path, "damaged", problem=str(error))
    if not parts:
        return StoredCache(path, "no cache", problem=f"{path}: holds no file of a cache")
    size = sum(parts.values())
    state: State = "damaged"
    try:
        if os.path.lexists(path / MANIFEST_NAME):
            cache = Cache.open(path)
            return StoredCache(path, "complete", cache.key, cache.rows, size)
        with unattended(path) as free:
            state = "incomplete" if free else "harvesting"
        key = read_description(path)
        return StoredCache(path, state, key, _rows_so_far(path, key, parts), size)
    except InputError as error:
        return StoredCache(path, state, bytes=size, problem=str(error))


def ordinary_parts(folder: Path) -> dict[str, int]:
    """The sizes of the ordinary files that belong to the cache in a folder, by name."""
    sizes = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_part(entry.name) and entry.is_file(follow_symlinks=False):
                sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    return sizes


def _rows_so_far(folder: Path, key: CacheKey, parts: Iterable[str]) -> int:
    """The rows of the shards that are done."""
    numbers = {int(match[1]) for name in parts if (match := _RECORD.fullmatch(name))}
    done = [record_of(folder, key, number) for number in numbers]
    blocks = sum(record.entry.blocks for record in done if record is not None)
    return blocks * key.layout.rows_per_block


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
