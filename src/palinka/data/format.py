"""On-disk format of a cache: key, shards and manifest; see `docs/cache-format.md`."""

import errno
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.errors import InputError, atomic_write

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
T = TypeVar("T")

FORMAT_NAME = "palinka-activations"
FORMAT_VERSION = 1
ALIGNMENT = 64
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_SAFETENSORS_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
# Names of members on disk that differ from those in the code.
_ON_DISK = {"contexts_per_shard": "blocks_per_shard"}

_ADVICE = {
    errno.ENOSPC: "no space left; free some or choose another cache folder, then run again",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another cache folder",
    errno.EROFS: "the file system is read-only; choose another cache folder",
    errno.EACCES: "permission denied; change the permissions or choose another cache folder",
    errno.ENOENT: "not found; if it was removed, remove its folder as well and harvest again",
    errno.EIO: "the disk reports an input/output error; check it and restore the cache",
}


@contextmanager
def as_input_error(path: Path) -> Iterator[None]:
    """Turn an `OSError` about `path` into an `InputError` with a remedy."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise InputError(f"{path}: {advice}") from error


_STEP = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD = 2**64 - 1


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the output function of splitmix64 to each word."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_FACTORS[0])
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_FACTORS[1])
    return words ^ (words >> np.uint64(31))


def permutation(length: int, *seeds: int) -> NDArray[np.int64]:
    """Permute the numbers below `length` by seeds, alike in every version of NumPy.

    Args:
        length: Number of elements.
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


@dataclass(frozen=True)
class Layout:
    """Row layout of the shards.

    Attributes:
        width: Numbers per row.
        dtype: Stored type: `"float16"`, `"bfloat16"` or `"float32"`.
        context_length: Tokens per context.
        skip: Leading positions of each context that have no row.
        contexts_per_shard: Contexts of one shard, which is one shuffle window; the last shard
            may have fewer.
        seed: Seeds the shuffling within shards.
    """

    width: int
    dtype: str
    context_length: int
    contexts_per_shard: int
    skip: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(
                f"activations cannot be stored as {self.dtype!r}: use one of {', '.join(DTYPES)}"
            )
        for name in ("width", "context_length", "contexts_per_shard"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.skip < self.context_length:
            raise InputError(
                f"skip is {self.skip}: it must be from 0 to context_length - 1 "
                f"({self.context_length - 1}), so that every context has rows"
            )
        if self.contexts_per_shard * self.context_length >= 2**31:
            raise InputError(
                f"contexts_per_shard is {self.contexts_per_shard}: a shard holds at most "
                f"2^31 - 1 tokens, here {(2**31 - 1) // self.context_length} contexts"
            )

    @property
    def rows_per_context(self) -> int:
        """Rows of each context."""
        return self.context_length - self.skip

    @property
    def torch_dtype(self) -> torch.dtype:
        """Stored type."""
        return DTYPES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row."""
        return self.width * self.torch_dtype.itemsize

    def to_json(self) -> dict[str, JSON]:
        """Members under their names on disk."""
        return {_ON_DISK.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, members: Any) -> "Layout":
        """Read the members of `to_json`."""
        names = {on_disk: name for name, on_disk in _ON_DISK.items()}
        return cls(**{names.get(name, name): value for name, value in members.items()})


@dataclass(frozen=True)
class CacheKey:
    """Content address of a cache: equal keys, equal rows.

    Attributes:
        layout: Row layout of the shards.
        settings: Everything else that determines the rows, as JSON: model, tokenizer, corpus,
            packing, site, split, row count and so on.
    """

    layout: Layout
    settings: Mapping[str, JSON]

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of version, layout and settings, 64 hex digits."""
        described = {
            "version": FORMAT_VERSION,
            "layout": self.layout.to_json(),
            "settings": self.settings,
        }
        canonical = json.dumps(described, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> dict[str, JSON]:
        """Members that identify the cache in its files."""
        return {"key": self.digest, "layout": self.layout.to_json(), "settings": self.settings}

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> "CacheKey":
        """Read the members of `to_json`.

        Raises:
            ValueError: If the key is not that of the layout and the settings.
        """
        key = cls(Layout.from_json(members["layout"]), members["settings"])
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
        rows: Number of rows.
        sum: Sum of the rows, `(width,)`.
        sum_of_norms: Sum of the rows' Euclidean norms.
        sum_of_squared_norms: Sum of their squares.
    """

    rows: int
    sum: NDArray[np.float64]
    sum_of_norms: float
    sum_of_squared_norms: float

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> "RowStatistics":
        """Sum up `rows`, `(rows, width)`."""
        squared_norms = np.einsum("ij,ij->i", rows, rows)
        return cls(
            rows=len(rows),
            sum=rows.sum(axis=0),
            sum_of_norms=float(np.sqrt(squared_norms).sum()),
            sum_of_squared_norms=float(squared_norms.sum()),
        )

    @classmethod
    def merged(cls, parts: Iterable["RowStatistics"], width: int) -> "RowStatistics":
        """Add up all parts in the order given."""
        rows, total, norms, squared_norms = 0, np.zeros(width), 0.0, 0.0
        for part in parts:
            rows += part.rows
            total = total + part.sum
            norms += part.sum_of_norms
            squared_norms += part.sum_of_squared_norms
        return cls(rows, total, norms, squared_norms)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean row, `(width,)`."""
        return self.sum / self.rows

    @property
    def mean_norm(self) -> float:
        """Mean Euclidean norm of a row, not centered."""
        return self.sum_of_norms / self.rows

    @property
    def mean_squared_norm(self) -> float:
        """Mean squared norm of a row, not centered."""
        return self.sum_of_squared_norms / self.rows

    @property
    def total_variance(self) -> float:
        """Mean squared distance of a row from the mean row."""
        return max(0.0, self.mean_squared_norm - float(self.mean @ self.mean))

    def to_json(self) -> dict[str, JSON]:
        """Members of the manifest and of a record."""
        return {
            "rows": self.rows,
            "sum_of_norms": self.sum_of_norms,
            "sum_of_squared_norms": self.sum_of_squared_norms,
            "sum": self.sum.tolist(),
        }

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> "RowStatistics":
        """Read the members of `to_json`."""
        return cls(**{**members, "sum": np.array(members["sum"], np.float64)})


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"shard-{index:05d}.safetensors"


@dataclass(frozen=True)
class ShardShape:
    """Byte layout of a shard, which follows from three values.

    Attributes:
        layout: Row layout of the cache.
        index: The shard's number.
        contexts: Contexts in this shard.
    """

    layout: Layout
    index: int
    contexts: int

    @property
    def rows(self) -> int:
        """Rows in this shard."""
        return self.contexts * self.layout.rows_per_context

    @property
    def header(self) -> bytes:
        """All bytes before the first tensor, including the length of the JSON.

        The JSON is padded with spaces so that the activations start at a multiple of 64.
        """
        table = [self.contexts, self.layout.context_length]
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
        metadata = {
            "format": FORMAT_NAME,
            "version": str(FORMAT_VERSION),
            "shard": str(self.index),
        }
        members: dict[str, object] = {"__metadata__": metadata}
        start = 0
        for name, (dtype, shape, length) in tensors.items():
            offsets = [start, start + length]
            members[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            start += length
        text = json.dumps(members, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text) + self._table_bytes) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    @property
    def _table_bytes(self) -> int:
        return 4 * (3 * self.contexts * self.layout.context_length + self.rows)

    def table_start(self, name: str) -> int:
        """Offset in bytes of `tokens`, `documents`, `positions` or the `index`."""
        place = ("tokens", "documents", "positions", "index").index(name)
        return len(self.header) + place * 4 * self.contexts * self.layout.context_length

    @property
    def activations_start(self) -> int:
        """Offset in bytes of the first row."""
        return len(self.header) + self._table_bytes

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.activations_start + self.rows * self.layout.row_bytes

    def order(self) -> NDArray[np.int64]:
        """Row, in the order of contexts and positions, at each place of the shard, `(rows,)`."""
        return permutation(self.rows, self.layout.seed, self.index)

    def places(self, order: NDArray[np.int64]) -> NDArray[np.int32]:
        """Place of each row of `order` in the flattened token table, `(rows,)`."""
        context, offset = np.divmod(order, self.layout.rows_per_context)
        return (context * self.layout.context_length + self.layout.skip + offset).astype(np.int32)


MANIFEST_NAME = "manifest.json"
# Description of a cache until its manifest is there.
DESCRIPTION_NAME = "harvest.json"

_CACHE_FILE = re.compile(
    r"(manifest\.json|harvest\.(json|lock)|shard-[0-9]{5,}\.(safetensors|json|lock))(\.tmp)?"
)


def is_cache_file(name: str) -> bool:
    """Check whether a file of this name belongs to a cache, finished or not."""
    return _CACHE_FILE.fullmatch(name) is not None


def is_stale(name: str) -> bool:
    """Check whether a file of this name is not needed once the cache is finished."""
    return is_cache_file(name) and name != MANIFEST_NAME and not name.endswith(".safetensors")


def write_json(path: Path, members: Mapping[str, JSON]) -> None:
    """Write a JSON object, one member a line, as a whole or not at all."""
    lines = [f"{json.dumps(n)}: {json.dumps(v, allow_nan=False)}" for n, v in members.items()]
    with as_input_error(path), atomic_write(path) as file:
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read_json(path: Path, kind: str, parse: Callable[[dict[str, Any]], T]) -> T:
    """Read a JSON object whose `format` is `kind`.

    Raises:
        InputError: If it cannot be read, is torn, or is of another kind or version.
    """
    with as_input_error(path):
        content = path.read_bytes()
    try:
        members = json.loads(content)
        if members["format"] != kind:
            raise ValueError(f"its format is {members['format']!r}, expected {kind!r}")
        version = members["version"]
        found = parse(members) if version == FORMAT_VERSION else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{path}: damaged ({reason}); remove the folder and harvest again"
        ) from error
    if found is None:
        raise InputError(
            f"{path}: format version {version!r}, this palinka reads version {FORMAT_VERSION}; "
            "use the palinka that wrote it, or remove the folder and harvest again"
        )
    return found


class ShardEntry(NamedTuple):
    """One shard in the manifest: its contexts, and the SHA-256 of its file, 64 hex digits."""

    contexts: int
    sha256: str


@dataclass(frozen=True)
class ShardRecord:
    """Entry and statistics of a finished shard, kept until there is a manifest."""

    entry: ShardEntry
    statistics: RowStatistics

    def write(self, path: Path, digest: str) -> None:
        """Write the record beside its shard."""
        members: dict[str, JSON] = {
            "format": f"{FORMAT_NAME}-shard",
            "version": FORMAT_VERSION,
            "key": digest,
            "blocks": self.entry.contexts,
            "sha256": self.entry.sha256,
            "statistics": self.statistics.to_json(),
        }
        write_json(path, members)

    @classmethod
    def read(cls, path: Path, digest: str) -> "ShardRecord":
        """Read a record of the cache with the key `digest`."""

        def parse(members: dict[str, Any]) -> ShardRecord:
            if members["key"] != digest:
                raise ValueError("it belongs to another cache")
            entry = ShardEntry(members["blocks"], members["sha256"])
            return cls(entry, RowStatistics.from_json(members["statistics"]))

        return read_json(path, f"{FORMAT_NAME}-shard", parse)


@dataclass(frozen=True)
class Manifest:
    """Key, shards in order, and sums over all rows of a finished cache."""

    key: CacheKey
    shards: tuple[ShardEntry, ...]
    statistics: RowStatistics

    @property
    def shapes(self) -> tuple[ShardShape, ...]:
        """Shape of every shard, in order."""
        return tuple(
            ShardShape(self.key.layout, index, entry.contexts)
            for index, entry in enumerate(self.shards)
        )

    def to_json(self) -> dict[str, JSON]:
        """Members of the file."""
        shapes = self.shapes
        return {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            **self.key.to_json(),
            "rows": sum(shape.rows for shape in shapes),
            "shards": [
                {
                    "file": shard_name(shape.index),
                    "blocks": shape.contexts,
                    "rows": shape.rows,
                    "bytes": shape.bytes,
                    "sha256": entry.sha256,
                }
                for shape, entry in zip(shapes, self.shards, strict=True)
            ],
            "statistics": self.statistics.to_json(),
        }

    def write(self, folder: Path) -> None:
        """Write the manifest into its folder."""
        write_json(folder / MANIFEST_NAME, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of a folder, and check that its members fit together."""
        return read_json(folder / MANIFEST_NAME, FORMAT_NAME, cls._parse)

    @classmethod
    def _parse(cls, members: dict[str, Any]) -> "Manifest":
        entries = [ShardEntry(shard["blocks"], shard["sha256"]) for shard in members["shards"]]
        statistics = RowStatistics.from_json(members["statistics"])
        manifest = cls(CacheKey.from_json(members), tuple(entries), statistics)
        for name, expected in manifest.to_json().items():
            if members[name] != expected:
                raise ValueError(f"its member {name!r} does not fit the others")
        if statistics.rows != members["rows"]:
            raise ValueError("its statistics are those of other rows")
        return manifest
