"""Small caches whose rows say where they come from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from palinka.data.cache import Cache
from palinka.data.format import CacheKey, Layout
from palinka.data.memory import MemoryRows
from palinka.data.writer import CacheWriter


@dataclass(frozen=True)
class SmallCorpus:
    """Token blocks with made-up activations; the first number of a row is its token's number."""

    layout: Layout
    blocks: int

    @property
    def key(self) -> CacheKey:
        return CacheKey(self.layout, {"corpus": "counted tokens", "blocks": self.blocks})

    @property
    def shards(self) -> int:
        return -(-self.blocks // self.layout.blocks_per_shard)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Numbered through, so that a token says its block and offset."""
        count = self.blocks * self.layout.context_length
        return np.arange(count).reshape(self.blocks, self.layout.context_length)

    @property
    def documents(self) -> NDArray[np.int64]:
        return self.tokens // 7

    @property
    def positions(self) -> NDArray[np.int64]:
        return self.tokens % 7

    @property
    def activations(self) -> torch.Tensor:
        tokens = torch.from_numpy(self.tokens[:, self.layout.skip :].reshape(-1, 1))
        columns = torch.arange(self.layout.width)
        noise = torch.sin(tokens * 0.7 + columns * 1.3)
        return torch.where(columns == 0, tokens, noise).to(self.layout.torch_dtype)

    def shard(
        self, index: int
    ) -> tuple[torch.Tensor, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        blocks = slice(
            index * self.layout.blocks_per_shard, (index + 1) * self.layout.blocks_per_shard
        )
        rows = slice(*(b * self.layout.rows_per_block for b in (blocks.start, blocks.stop)))
        tables = (self.tokens[blocks], self.documents[blocks], self.positions[blocks])
        return (self.activations[rows], *tables)

    def write(self, root: Path) -> Cache:
        writer = CacheWriter(root, self.key)
        for index in range(self.shards):
            with writer.claim(index) as shard:
                if shard is not None:
                    shard.write(*self.shard(index))
        return writer.finish(self.shards)

    def in_memory(self) -> MemoryRows:
        return MemoryRows(
            self.activations, self.tokens, self.documents, self.positions, self.layout.skip
        )


@pytest.fixture
def corpus() -> Callable[..., SmallCorpus]:
    """Makes a corpus of five blocks of eight tokens, in shards of two, unless told otherwise."""

    def make(blocks: int = 5, **layout: object) -> SmallCorpus:
        settings = {"width": 3, "dtype": "float32", "context_length": 8, "blocks_per_shard": 2}
        return SmallCorpus(Layout(**{**settings, **layout}), blocks)  # type: ignore[arg-type]

    return make


@pytest.fixture
def cache(corpus: Callable[..., SmallCorpus], tmp_path: Path) -> Cache:
    """Five blocks of eight tokens in three shards."""
    return corpus().write(tmp_path / "caches")
