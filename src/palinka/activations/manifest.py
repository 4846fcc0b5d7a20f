"""What a cache says of itself, and what each of its shards says until the cache is done."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from palinka.activations.key import FORMAT_VERSION, JSON, CacheKey, json_object
from palinka.activations.sealed import read_sealed, write_sealed
from palinka.activations.shard import ShardShape, shard_name
from palinka.activations.statistics import RowStatistics
from palinka.errors import InputError

MANIFEST_NAME = "manifest.json"
FORMAT_NAME = "palinka-activations"

T = TypeVar("T")


@dataclass(frozen=True)
class ShardEntry:
    """One shard as the manifest lists it.

    Attributes:
        blocks: Its token blocks.
        sha256: The checksum of the whole file, 64 hex digits.
    """

    blocks: int
    sha256: str


@dataclass(frozen=True)
class ShardRecord:
    """What is known of a written shard before there is a manifest."""

    entry: ShardEntry
    statistics: RowStatistics

    def write(self, path: Path, digest: str) -> None:
        """Write the record beside its shard."""
        write_sealed(
            path,
            {
                "format": FORMAT_NAME + "-shard",
                "version": FORMAT_VERSION,
                "key": digest,
                "blocks": self.entry.blocks,
                "sha256": self.entry.sha256,
                "statistics": _statistics_to_json(self.statistics),
            },
        )

    @classmethod
    def read(cls, path: Path, digest: str, width: int) -> "ShardRecord":
        """Read a record.

        Raises:
            InputError: If it is missing, damaged or that of another cache.
        """
        members = read_sealed(path)
        check_version(path, members, FORMAT_NAME + "-shard")
        return parsed(path, lambda: cls._parse(members, digest, width))

    @classmethod
    def _parse(cls, members: Mapping[str, JSON], digest: str, width: int) -> "ShardRecord":
        if members["key"] != digest:
            raise ValueError("it belongs to another cache")
        return cls(
            ShardEntry(_count(members["blocks"]), _checksum(members["sha256"])),
            _statistics_from_json(members["statistics"], width),
        )


@dataclass(frozen=True)
class Manifest:
    """What makes a folder a cache.

    Attributes:
        key: Layout and settings.
        shards: Every shard, in order.
        statistics: Sums over all rows.
    """

    key: CacheKey
    shards: tuple[ShardEntry, ...]
    statistics: RowStatistics

    @property
    def shapes(self) -> tuple[ShardShape, ...]:
        """The shape of every shard, in order."""
        return tuple(
            ShardShape(self.key.layout, index, entry.blocks)
            for index, entry in enumerate(self.shards)
        )

    def write(self, folder: Path) -> None:
        """Write the manifest into its folder, durably and all at once."""
        entries: list[JSON] = [
            {
                "file": shard_name(shape.index),
                "blocks": shape.blocks,
                "rows": shape.rows,
                "bytes": shape.bytes,
                "sha256": entry.sha256,
            }
            for shape, entry in zip(self.shapes, self.shards, strict=True)
        ]
        write_sealed(
            folder / MANIFEST_NAME,
            {
                "format": FORMAT_NAME,
                "version": FORMAT_VERSION,
                **self.key.to_json(),
                "rows": self.statistics.rows,
                "shards": entries,
                "statistics": _statistics_to_json(self.statistics),
            },
        )

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read and check the manifest of a folder.

        Raises:
            InputError: If there is none, or it is damaged or of another version.
        """
        path = folder / MANIFEST_NAME
        members = read_sealed(path)
        check_version(path, members, FORMAT_NAME)
        return parsed(path, lambda: cls._parse(members))

    @classmethod
    def _parse(cls, members: Mapping[str, JSON]) -> "Manifest":
        key = CacheKey.from_json(members)
        entries = []
        for index, listed in enumerate(_sequence(members["shards"])):
            entry = json_object(listed)
            blocks = _count(entry["blocks"])
            shape = ShardShape(key.layout, index, blocks)
            expected = {
                "file": shard_name(index),
                "blocks": blocks,
                "rows": shape.rows,
                "bytes": shape.bytes,
                "sha256": _checksum(entry["sha256"]),
            }
            if entry != expected or blocks > key.layout.blocks_per_shard:
                raise ValueError(f"its entry of shard {index} is {str(listed)[:200]}")
            entries.append(ShardEntry(blocks, _checksum(entry["sha256"])))
        statistics = _statistics_from_json(members["statistics"], key.layout.width)
        rows = sum(entry.blocks for entry in entries) * key.layout.rows_per_block
        if not entries or not rows == statistics.rows == members["rows"]:
            raise ValueError("its rows are not those of its shards")
        return cls(key, tuple(entries), statistics)


def check_version(path: Path, members: Mapping[str, JSON], expected: str) -> None:
    """Refuse a sealed file of another kind or version.

    Raises:
        InputError: Saying which version the file has and which can be read.
    """
    if members.get("format") != expected:
        raise InputError(f"{path}: not a {expected} file; remove the folder and harvest again")
    version = members.get("version")
    if version != FORMAT_VERSION or type(version) is not int:
        raise InputError(
            f"{path}: format version {version!r}, this palinka reads version {FORMAT_VERSION}; "
            "use the palinka that wrote it, or remove the folder and harvest again"
        )


def parsed(path: Path, parse: Callable[[], T]) -> T:
    """What `parse` makes of a file whose seal is whole.

    Raises:
        InputError: If it is not what such a file holds.
    """
    try:
        return parse()
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{path}: not as it should be ({reason}); remove the folder and harvest again"
        ) from error


def _sequence(value: JSON) -> list[JSON]:
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:200]} is no list")
    return value


def _count(value: JSON) -> int:
    if type(value) is not int or not 1 <= value < 2**31:
        raise ValueError(f"{str(value)[:200]} is no count")
    return value


def _checksum(value: JSON) -> str:
    if not (isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")):
        raise ValueError(f"{str(value)[:200]} is no SHA-256 checksum")
    return value


def _finite(value: JSON) -> float:
    if type(value) not in (int, float) or not np.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{str(value)[:200]} is no finite number")
    return float(value)  # type: ignore[arg-type]


def _statistics_to_json(statistics: RowStatistics) -> JSON:
    return {
        "rows": statistics.rows,
        "sum_of_norms": statistics.sum_of_norms,
        "sum_of_squared_norms": statistics.sum_of_squared_norms,
        "sum": statistics.sum.tolist(),
    }


def _statistics_from_json(value: JSON, width: int) -> RowStatistics:
    members = json_object(value)
    total = [_finite(number) for number in _sequence(members["sum"])]
    if len(total) != width:
        raise ValueError(f"the sum of its rows has {len(total)} numbers, not {width}")
    if type(members["rows"]) is not int:
        raise ValueError("its number of rows is no integer")
    return RowStatistics(
        rows=members["rows"],
        sum=np.array(total),
        sum_of_norms=_finite(members["sum_of_norms"]),
        sum_of_squared_norms=_finite(members["sum_of_squared_norms"]),
    )
