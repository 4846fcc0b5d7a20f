"""The bytes of one shard: an ordinary safetensors file with a fixed header."""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from palinka.activations.key import FORMAT_VERSION, Layout
from palinka.activations.permutation import permutation

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
