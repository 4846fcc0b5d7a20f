"""What determines the rows of a cache, and the name that follows from it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeAlias

import torch

from palinka.errors import InputError

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
