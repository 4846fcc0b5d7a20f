"""Small caches whose rows identify their tokens, and tokenizers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from palinka.data import Cache, CacheKey, CacheWriter, Context, Layout

Table = NDArray[np.int64]


@dataclass(frozen=True)
class SmallCorpus:
    """Contexts with made-up activations; the first number of a row is its token's number."""

    layout: Layout
    contexts: int

    @property
    def key(self) -> CacheKey:
        return CacheKey(self.layout, {"corpus": "counted tokens", "contexts": self.contexts})

    @property
    def shards(self) -> int:
        return -(-self.contexts // self.layout.contexts_per_shard)

    @property
    def tokens(self) -> Table:
        """Numbered through, so that a token says its context and offset."""
        count = self.contexts * self.layout.context_length
        return np.arange(count).reshape(self.contexts, self.layout.context_length)

    @property
    def tables(self) -> tuple[Table, Table, Table]:
        """Tokens, documents and positions: documents of seven tokens."""
        return self.tokens, self.tokens // 7, self.tokens % 7

    @property
    def activations(self) -> torch.Tensor:
        tokens = torch.from_numpy(self.tokens[:, self.layout.skip :].reshape(-1, 1))
        columns = torch.arange(self.layout.width)
        noise = torch.sin(tokens * 0.7 + columns * 1.3)
        return torch.where(columns == 0, tokens, noise).to(self.layout.torch_dtype)

    def shard(self, index: int) -> tuple[torch.Tensor, list[Context]]:
        size = self.layout.contexts_per_shard
        tables = (table[index * size : (index + 1) * size] for table in self.tables)
        rows = self.activations.split(size * self.layout.rows_per_context)[index]
        return rows, [Context(*context) for context in zip(*tables, strict=True)]

    def begin(self, root: Path, indices: Iterable[int]) -> CacheWriter:
        """Write some shards."""
        writer = CacheWriter(root, self.key)
        for index in indices:
            with writer.claim(index) as mine:
                if mine:
                    writer.write(index, *self.shard(index))
        return writer

    def write(self, root: Path) -> Cache:
        return self.begin(root, range(self.shards)).finish(self.shards)


Corpora = Callable[..., SmallCorpus]


@pytest.fixture(scope="session")
def corpus() -> Corpora:
    """Makes a corpus of five contexts of eight tokens, in shards of two."""

    def make(contexts: int = 5, **layout: object) -> SmallCorpus:
        settings = {"width": 3, "dtype": "float32", "context_length": 8, "contexts_per_shard": 2}
        return SmallCorpus(Layout(**{**settings, **layout}), contexts)  # type: ignore[arg-type]

    return make


@pytest.fixture
def cache(corpus: Corpora, tmp_path: Path) -> Cache:
    """Five contexts of eight tokens in three shards."""
    return corpus().write(tmp_path / "caches")


@pytest.fixture
def other_tokenizer() -> PreTrainedTokenizerBase:
    """Every byte a token, in an order that is not the mini model's; a BOS token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
