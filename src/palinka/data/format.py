"""On-disk format of a cache: key, shards and manifest; see `docs/cache-format.md`."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.errors import InputError, atomic_write

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
T = TypeVar("T")

FORMAT_NAME = "palinka-activations"
FORMAT_VERSION = 1
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_SAFETENSORS_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
TABLES = ("tokens", "documents", "positions")


@contextmanager
def as_input_error(path: Path | str) -> Iterator[None]:
    """Turn an `OSError` about `path` into an `InputError` with a remedy."""
    try:
        yield
    except FileNotFoundError as error:
        remedy = "if it was removed, remove its folder as well and harvest again"
        raise InputError(f"{path}: not found; {remedy}") from error
    except OSError as error:
        remedy = "fix that, or set PALINKA_CACHE or cache_dir to another folder"
        raise InputError(f"{path}: {error.strerror}; {remedy}") from error


_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def permutation(length: int, *seeds: int) -> NDArray[np.int64]:
    """Permute the numbers below `length` by seeds, alike in every version of NumPy.

    They are in ascending order of their splitmix64 output; 64 bits of each seed count.

    Source:
        Steele, Lea & Flood (2014), Fast splittable pseudorandom number generators.
    """
    state = np.zeros(1, np.uint64)
    for seed in seeds:
        state = _mixed((state ^ np.uint64(seed % 2**64)) + _STEP)
    counters = np.arange(1, length + 1, dtype=np.uint64) * _STEP
    return np.argsort(_mixed(state + counters), kind="stable").astype(np.int64, copy=False)


@dataclass(frozen=True)
class Layout:
    """Row layout of the shards."""

    width: int
    dtype: str  # a key of `DTYPES`
    context_length: int
    contexts_per_shard: int  # where rows are shuffled; the last shard may have fewer
    skip: int = 0  # leading positions of each context without a row
    seed: int = 0  # of the shuffling within shards

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}")
        if (length := self.context_length) <= self.skip:
            raise InputError(f"context_length is {length}; expected at least {self.skip + 1}")

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
        """Members under their names on disk, where a context is a block."""
        return {name.replace("contexts_", "blocks_"): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, members: Any) -> "Layout":
        """Read the members of `to_json`."""
        return cls(**{name.replace("blocks_", "contexts_"): v for name, v in members.items()})


@dataclass(frozen=True)
class CacheKey:
    """Content address of a cache: equal keys, equal rows."""

    layout: Layout
    settings: Mapping[str, JSON]  # all else that determines the rows: model, corpus, site, …

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of version, layout and settings, 64 hex digits."""
        layout = self.layout.to_json()
        described = {"version": FORMAT_VERSION, "layout": layout, "settings": self.settings}
        canonical = json.dumps(described, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> dict[str, JSON]:
        """Members that identify the cache in its files."""
        return {"key": self.digest, "layout": self.layout.to_json(), "settings": self.settings}

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> "CacheKey":
        """Read the members of `to_json`; a `ValueError` if the key is not that of the rest."""
        key = cls(Layout.from_json(members["layout"]), members["settings"])
        if members["key"] != key.digest:
            raise ValueError("its key is not that of its settings")
        return key

    def folder(self, root: Path) -> Path:
        """The cache's folder under `root`, named by the first 16 digits of the digest."""
        return root / self.digest[:16]


@dataclass(frozen=True)
class RowStatistics:
    """Sums over rows in float64; those of several shards add up to those of the whole."""

    rows: int
    sum_of_norms: float  # Euclidean
    sum_of_squared_norms: float
    sum: NDArray[np.float64]  # (width,)

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> "RowStatistics":
        """Sum up `rows`, `(rows, width)`."""
        squared_norms = np.einsum("ij,ij->i", rows, rows)
        norms = float(np.sqrt(squared_norms).sum())
        return cls(len(rows), norms, float(squared_norms.sum()), rows.sum(axis=0))

    def __add__(self, other: "RowStatistics") -> "RowStatistics":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return RowStatistics(*(one + another for one, another in pairs))

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean row, `(width,)`."""
        return self.sum / self.rows

    def to_json(self) -> dict[str, JSON]:
        """Members of the manifest and of a record."""
        return {**vars(self), "sum": self.sum.tolist()}

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> "RowStatistics":
        """Read the members of `to_json`."""
        return cls(**{**members, "sum": np.array(members["sum"], np.float64)})


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"shard-{index:05d}.safetensors"


@dataclass(frozen=True)
class ShardShape:
    """Byte layout of a shard, which follows from the cache's layout, its number and its size."""

    layout: Layout
    index: int
    contexts: int

    @property
    def rows(self) -> int:
        """Rows in this shard."""
        return self.contexts * self.layout.rows_per_context

    @cached_property
    def header(self) -> bytes:
        """All bytes before the first tensor, padded so that the rows start at a multiple of 64."""
        table, kind = [self.contexts, self.layout.context_length], self.layout.dtype
        shapes = {
            **dict.fromkeys(TABLES, ("I32", table)),
            "index": ("I32", [self.rows]),
            "activations": (_SAFETENSORS_DTYPES[kind], [self.rows, self.layout.width]),
        }
        metadata = {"format": FORMAT_NAME, "version": f"{FORMAT_VERSION}", "shard": f"{self.index}"}
        members: dict[str, object] = {"__metadata__": metadata}
        stop = 0
        for name, (dtype, shape) in shapes.items():
            itemsize = 4 if dtype == "I32" else self.layout.torch_dtype.itemsize
            start, stop = stop, stop + int(np.prod(shape)) * itemsize
            members[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
        text = json.dumps(members, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text) + self._table_bytes) % 64)
        return len(text).to_bytes(8, "little") + text

    @property
    def _table_bytes(self) -> int:
        return 4 * (len(TABLES) * self.contexts * self.layout.context_length + self.rows)

    @property
    def activations_start(self) -> int:
        """Offset in bytes of the first row."""
        return len(self.header) + self._table_bytes

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.activations_start + self.rows * self.layout.row_bytes


MANIFEST_NAME = "manifest.json"
DESCRIPTION_NAME = "harvest.json"  # until the manifest is there
# Names of the files of a cache, finished or not.
CACHE_FILE = re.compile(
    r"(manifest\.json|harvest\.(json|lock)|shard-[0-9]{5,}\.(safetensors|json|lock))(\.tmp)?"
)


def write_json(path: Path, kind: str, members: Mapping[str, JSON]) -> None:
    """Write a JSON object, one member a line, as a whole or not at all."""
    whole = {"format": kind, "version": FORMAT_VERSION, **members}
    lines = [f"{json.dumps(n)}: {json.dumps(v, allow_nan=False)}" for n, v in whole.items()]
    with as_input_error(path), atomic_write(path) as file:
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read_json(path: Path, kind: str, parse: Callable[[dict[str, Any]], T]) -> T:
    """Read a JSON object whose `format` is `kind`; reject a torn one and other versions."""
    with as_input_error(path):
        content = path.read_bytes()
    try:
        members = json.loads(content)
        if members["format"] != kind:
            raise ValueError(f"its format is {members['format']!r}, expected {kind!r}")
        version = members["version"]
        if version == FORMAT_VERSION:
            return parse(members)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: damaged ({why}); remove the folder and harvest again") from error
    versions = f"format version {version!r}, this palinka reads version {FORMAT_VERSION}"
    raise InputError(f"{path}: {versions}; use the one that wrote it, or harvest again")


@dataclass(frozen=True)
class Manifest:
    """Key, SHA-256 of every shard in order, and sums over all rows of a finished cache."""

    key: CacheKey
    checksums: Mapping[ShardShape, str]
    statistics: RowStatistics

    def to_json(self) -> dict[str, JSON]:
        """Members of the file."""
        return {
            **self.key.to_json(),
            "rows": sum(shape.rows for shape in self.checksums),
            "shards": [
                {
                    "file": shard_name(shape.index),
                    "blocks": shape.contexts,
                    "rows": shape.rows,
                    "bytes": shape.bytes,
                    "sha256": sha256,
                }
                for shape, sha256 in self.checksums.items()
            ],
            "statistics": self.statistics.to_json(),
        }

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of a folder, and check that its members fit together."""

        def parse(members: dict[str, Any]) -> Manifest:
            key = CacheKey.from_json(members)
            checksums = {
                ShardShape(key.layout, index, shard["blocks"]): shard["sha256"]
                for index, shard in enumerate(members["shards"])
            }
            manifest = cls(key, checksums, RowStatistics.from_json(members["statistics"]))
            for name, expected in manifest.to_json().items():
                if members[name] != expected:
                    raise ValueError(f"its member {name!r} does not fit the others")
            if manifest.statistics.rows != members["rows"]:
                raise ValueError("its statistics are those of other rows")
            return manifest

        return read_json(folder / MANIFEST_NAME, FORMAT_NAME, parse)
