"""Caches on disk: listing and removal."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from palinka.data import format as disk
from palinka.data.cache import Cache
from palinka.data.writer import is_harvested, read_description, record_of
from palinka.errors import InputError

State = Literal["complete", "harvesting", "incomplete", "damaged", "no cache"]


@dataclass(frozen=True)
class StoredCache:
    """An entry of a folder of caches."""

    path: Path
    state: State  # "harvesting": an incomplete one that a running harvest writes to
    key: disk.CacheKey | None = None
    rows: int | None = None  # so far, if known
    bytes: int = 0  # of all its files
    problem: str = ""  # may hold any text


def stored_caches(root: Path) -> list[StoredCache]:
    """List everything in a folder of caches, by name; links are not followed."""
    with disk.as_input_error(root):
        return [_inspect(path) for path in sorted(root.iterdir())]


def _inspect(path: Path) -> StoredCache:
    if path.is_symlink() or not path.is_dir():
        return StoredCache(path, "no cache", problem=f"{path}: not a folder")
    state: State = "damaged"
    size = 0
    try:
        with disk.as_input_error(path):
            sizes = {file.name: file.stat().st_size for file in _cache_files(path)}
        if not sizes:
            return StoredCache(path, "no cache", problem=f"{path}: holds no file of a cache")
        size = sum(sizes.values())
        if disk.MANIFEST_NAME in sizes:
            cache = Cache.open(path)
            return StoredCache(path, "complete", cache.key, cache.rows, size)
        state = "harvesting" if is_harvested(path) else "incomplete"
        key = read_description(path)
        numbers = [int(n[6:-5]) for n in sizes if n.startswith("shard-") and n.endswith(".json")]
        records = [record for number in numbers if (record := record_of(path, key, number))]
        return StoredCache(path, state, key, sum(shape.rows for shape, _, _ in records), size)
    except InputError as error:
        return StoredCache(path, state, bytes=size, problem=str(error))


def _cache_files(folder: Path) -> list[Path]:
    order = {disk.MANIFEST_NAME: 0, disk.DESCRIPTION_NAME: 2}
    files = [f for f in folder.iterdir() if disk.CACHE_FILE.fullmatch(f.name) and f.is_file()]
    return sorted(files, key=lambda path: (order.get(path.name, 1), path.name))


def remove_cache(folder: Path) -> tuple[int, list[str]]:
    """Remove the files of one cache, finished or not, and its folder if nothing else is in it.

    The manifest goes first, so that a part of a cache is never read as a whole one. Returns the
    number of bytes removed, and the names of what stayed in the folder.
    """
    with disk.as_input_error(folder):
        if is_harvested(folder):
            raise InputError(f"{folder}: in use by a running harvest; stop it first")
        size = 0
        for path in _cache_files(folder):
            with disk.as_input_error(path):
                size += path.stat().st_size
                path.unlink()
        left = sorted(path.name for path in folder.iterdir())
        if not left:
            folder.rmdir()
    return size, left
