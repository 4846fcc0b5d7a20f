"""Small caches whose rows identify their tokens, and tokenizers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from palinka.assets import mini_gpt2_folder
from palinka.data.cache import Cache
from palinka.data.format import CacheKey, Layout
from palinka.data.memory import MemoryRows
from palinka.data.writer import CacheWriter


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
    def tokens(self) -> NDArray[np.int64]:
        """Numbered through, so that a token says its context and offset."""
        count = self.contexts * self.layout.context_length
        return np.arange(count).reshape(self.contexts, self.layout.context_length)

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
        contexts = slice(
            index * self.layout.contexts_per_shard, (index + 1) * self.layout.contexts_per_shard
        )
        rows = slice(*(c * self.layout.rows_per_context for c in (contexts.start, contexts.stop)))
        tables = (self.tokens[contexts], self.documents[contexts], self.positions[contexts])
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


Corpora = Callable[..., SmallCorpus]


@pytest.fixture
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


@pytest.fixture(scope="session")
def mini_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(mini_gpt2_folder())


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
