"""On-disk format of a cache: key, shards, statistics and manifest."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.data.files import replacement, told_apart
from palinka.errors import InputError

_STEP = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD = 2**64 - 1


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64, word by word."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_FACTORS[0])
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_FACTORS[1])
    return words ^ (words >> np.uint64(31))


def permutation(length: int, *seeds: int) -> NDArray[np.int64]:
    """The numbers below `length` in an order that depends on all seeds.

    NumPy does not promise the streams of its generators over versions; files and resumed
    runs need an order that stays.

    Args:
        length: How many numbers.
        seeds: Integers, of which the lowest 64 bits count.

    Returns:
        Element numbers in ascending order of their splitmix64 output, `(length,)`.

    Source:
        Steele, Lea & Flood (2014), Fast splittable pseudorandom number generators.
    """
    state = np.zeros(1, np.uint64)
    for seed in seeds:
        state = _mixed((state ^ np.uint64(seed & _WORD)) + np.uint64(_STEP))
    counters = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(_STEP)
    return np.argsort(_mixed(state + counters), kind="stable").astype(np.int64, copy=False)


JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

FORMAT_VERSION = 1

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def canonical_json(value: JSON) -> str:
    """The one way to write `value`: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def json_object(value: JSON) -> Mapping[str, JSON]:
    """The value, which has to be an object.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{str(value)[:200]} is no object")
    return value


@dataclass(frozen=True)
class Layout:
    """How rows are cut from the token blocks and laid down in shards.

    Attributes:
        width: Numbers per row.
        dtype: How a number is stored: `"float16"`, `"bfloat16"` or `"float32"`.
        context_length: Tokens per block.
        skip: Leading positions of each block that become no rows.
        blocks_per_shard: Blocks of one shard, which is one shuffle window; the last shard
            may have fewer.
        seed: Seeds the shuffling within shards.

    Raises:
        InputError: If a number is out of range or the dtype is unknown.
    """

    width: int
    dtype: str
    context_length: int
    blocks_per_shard: int
    skip: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(
                f"activations cannot be stored as {self.dtype!r}: use one of {', '.join(DTYPES)}"
            )
        for name in ("width", "context_length", "blocks_per_shard"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.skip < self.context_length:
            raise InputError(
                f"skip is {self.skip}: it must be from 0 to context_length - 1 "
                f"({self.context_length - 1}), so that every block has rows"
            )
        if self.blocks_per_shard * self.context_length > 2**31 - 1:
            raise InputError(
                f"blocks_per_shard is {self.blocks_per_shard}: a shard holds at most 2^31 - 1 "
                f"tokens, here {(2**31 - 1) // self.context_length} blocks"
            )

    @property
    def rows_per_block(self) -> int:
        """Rows that each block gives."""
        return self.context_length - self.skip

    @property
    def torch_dtype(self) -> torch.dtype:
        """The stored type as torch knows it."""
        return DTYPES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row."""
        return self.width * self.torch_dtype.itemsize


@dataclass(frozen=True)
class CacheKey:
    """The content address of a cache: equal keys, equal rows.

    Attributes:
        layout: How the rows lie in the shards.
        settings: Everything else that determines the rows, as JSON: model, tokenizer, corpus,
            packing, site, split, row count and so on.
    """

    layout: Layout
    settings: Mapping[str, JSON]

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of version, layout and settings, 64 hex digits."""
        described: Mapping[str, JSON] = {
            "version": FORMAT_VERSION,
            "layout": asdict(self.layout),
            "settings": self.settings,
        }
        return hashlib.sha256(canonical_json(described).encode()).hexdigest()

    def to_json(self) -> dict[str, JSON]:
        """The members by which a file says which cache it belongs to."""
        return {"key": self.digest, "layout": asdict(self.layout), "settings": self.settings}

    @classmethod
    def from_json(cls, members: Mapping[str, JSON]) -> "CacheKey":
        """The key that a file's members describe.

        Raises:
            KeyError: If a member is missing.
            TypeError: If a member is no object.
            ValueError: If a member has a value it cannot have, or the key is not theirs.
        """
        layout = json_object(members["layout"])
        if set(layout) != {field.name for field in fields(Layout)}:
            raise ValueError("its layout has other members than it should")
        for name, value in layout.items():
            if type(value) is not (str if name == "dtype" else int):
                raise ValueError(f"its {name} is {repr(value)[:200]}")
        key = cls(Layout(**layout), json_object(members["settings"]))  # type: ignore[arg-type]
        if members["key"] != key.digest:
            raise ValueError("its key is not that of its settings")
        return key

    def folder(self, root: Path) -> Path:
        """The cache's folder under `root`, named by the first 16 digits of the digest."""
        return root / self.digest[:16]


@dataclass(frozen=True)
class RowStatistics:
    """Sums over rows in float64; sums of several shards add up to those of the whole.

    Attributes:
        rows: How many rows went in.
        sum: The sum of the rows, `(width,)`.
        sum_of_norms: The sum of the rows' Euclidean norms.
        sum_of_squared_norms: The sum of their squares.
    """

    rows: int
    sum: NDArray[np.float64]
    sum_of_norms: float
    sum_of_squared_norms: float

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> "RowStatistics":
        """The sums over `rows`, `(rows, width)`."""
        squared_norms = np.einsum("ij,ij->i", rows, rows)
        return cls(
            rows=len(rows),
            sum=rows.sum(axis=0),
            sum_of_norms=float(np.sqrt(squared_norms).sum()),
            sum_of_squared_norms=float(squared_norms.sum()),
        )

    @classmethod
    def merged(cls, parts: Iterable["RowStatistics"], width: int) -> "RowStatistics":
        """The sums over all parts, added in the order given."""
        rows, total, norms, squared_norms = 0, np.zeros(width), 0.0, 0.0
        for part in parts:
            rows += part.rows
            total = total + part.sum
            norms += part.sum_of_norms
            squared_norms += part.sum_of_squared_norms
        return cls(rows, total, norms, squared_norms)

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean row, `(width,)`."""
        return self.sum / self.rows

    @property
    def mean_norm(self) -> float:
        """The mean Euclidean norm of a row, not centred."""
        return self.sum_of_norms / self.rows

    @property
    def mean_squared_norm(self) -> float:
        """The mean squared norm of a row, not centred."""
        return self.sum_of_squared_norms / self.rows

    @property
    def total_variance(self) -> float:
        """The mean squared distance of a row from the mean row."""
        return max(0.0, self.mean_squared_norm - float(self.mean @ self.mean))


ALIGNMENT = 64

_SAFETENSORS_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


def shard_name(index: int) -> str:
    """The file name of a shard."""
    return f"shard-{index:05d}.safetensors"


@dataclass(frozen=True)
class ShardShape:
    """Where everything lies in the shard of a given number, which follows from few numbers.

    Attributes:
        layout: How the cache's rows are cut and stored.
        index: The shard's number.
        blocks: Token blocks in this shard.
    """

    layout: Layout
    index: int
    blocks: int

    @property
    def rows(self) -> int:
        """Rows in this shard."""
        return self.blocks * self.layout.rows_per_block

    @property
    def header(self) -> bytes:
        """All bytes before the first tensor, the length of the JSON included.

        The JSON is padded with spaces so that the activations start at a multiple of 64.
        """
        table = [self.blocks, self.layout.context_length]
        tensors = {
            "tokens": ("I32", table, 4 * table[0] * table[1]),
            "documents": ("I32", table, 4 * table[0] * table[1]),
            "positions": ("I32", table, 4 * table[0] * table[1]),
            "index": ("I32", [self.rows], 4 * self.rows),
            "activations": (
                _SAFETENSORS_DTYPES[self.layout.dtype],
                [self.rows, self.layout.width],
                self.rows * self.layout.row_bytes,
            ),
        }
        members: dict[str, object] = {
            "__metadata__": {
                "format": "palinka-activations",
                "version": str(FORMAT_VERSION),
                "shard": str(self.index),
            }
        }
        start = 0
        for name, (dtype, shape, length) in tensors.items():
            members[name] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [start, start + length],
            }
            start += length
        text = json.dumps(members, separators=(",", ":")).encode()
        padding = -(8 + len(text) + self._table_bytes) % ALIGNMENT
        text += b" " * padding
        return len(text).to_bytes(8, "little") + text

    @property
    def _table_bytes(self) -> int:
        return 4 * (3 * self.blocks * self.layout.context_length + self.rows)

    def table_start(self, name: str) -> int:
        """Where the table of `tokens`, `documents`, `positions` or the `index` starts."""
        place = ("tokens", "documents", "positions", "index").index(name)
        return len(self.header) + place * 4 * self.blocks * self.layout.context_length

    @property
    def activations_start(self) -> int:
        """Where the first row starts."""
        return len(self.header) + self._table_bytes

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return self.activations_start + self.rows * self.layout.row_bytes

    def order(self) -> NDArray[np.int64]:
        """Which row, in the order of blocks and positions, comes at each place, `(rows,)`."""
        return permutation(self.rows, self.layout.seed, self.index)

    def places(self, order: NDArray[np.int64]) -> NDArray[np.int32]:
        """The place of each row of `order` in the flattened token table, `(rows,)`."""
        block, offset = np.divmod(order, self.layout.rows_per_block)
        return (block * self.layout.context_length + self.layout.skip + offset).astype(np.int32)


# Far above the manifest of a billion rows; what is larger is not read into memory.
_LARGEST_BYTES = 256 * 2**20


def _seal(body: bytes) -> bytes:
    return b'"checksum": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode()


_SEAL_BYTES = len(_seal(b""))


def sealed(members: Mapping[str, JSON]) -> bytes:
    """A JSON object, one member a line, whose last member is the checksum."""
    lines = [
        f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)},\n"
        for name, value in members.items()
    ]
    body = ("{\n" + "".join(lines)).encode()
    return body + _seal(body)


def write_sealed(path: Path, members: Mapping[str, JSON]) -> None:
    """Write a sealed JSON file, durably and all at once."""
    with told_apart(path), replacement(path) as new:
        assert new is not None
        new.file.write(sealed(members))
        new.commit()


def read_sealed(path: Path) -> dict[str, JSON]:
    """The members of a sealed JSON file, without the checksum.

    Raises:
        InputError: If the file cannot be read, is no ordinary file, or a bit of it has changed.
    """
    with told_apart(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(_LARGEST_BYTES + 1)
    body = content[:-_SEAL_BYTES]
    if len(content) > _LARGEST_BYTES or content[-_SEAL_BYTES:] != _seal(body):
        raise InputError(
            f"{path}: damaged, its checksum does not match; remove the folder and harvest again"
        )
    try:
        members = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON; remove the folder and harvest again") from error
    members.pop("checksum")
    return dict(members)


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


# What a harvest says of the cache before there is a manifest.
DESCRIPTION_NAME = "harvest.json"
TEMPORARY_SUFFIX = ".tmp"

_PART = re.compile(
    rf"({re.escape(MANIFEST_NAME)}|{re.escape(DESCRIPTION_NAME)}"
    rf"|shard-[0-9]{{5,20}}\.(safetensors|json))({re.escape(TEMPORARY_SUFFIX)})?"
)


def is_part(name: str) -> bool:
    """Whether a file of this name belongs to a cache, finished or not."""
    return _PART.fullmatch(name) is not None


def is_leftover(name: str) -> bool:
    """Whether a file of this name belongs to a cache, but not once it is finished."""
    return is_part(name) and name != MANIFEST_NAME and not name.endswith(".safetensors")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one of a cache that is being written."""
    return is_part(name) and name.endswith(TEMPORARY_SUFFIX)
