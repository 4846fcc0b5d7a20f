"""Which caches a folder holds, whatever state they are in."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from palinka.activations.cache import Cache
from palinka.activations.contents import is_part
from palinka.activations.files import told_apart
from palinka.activations.key import CacheKey
from palinka.activations.manifest import MANIFEST_NAME
from palinka.activations.underway import read_description, record_of, unattended
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
