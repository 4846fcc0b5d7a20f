"""A language model of GPT-2 small's shape with weights drawn at random, and text for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from palinka.assets import mini_gpt2_folder
from palinka.data import Corpus, Document

CONTEXT = 128


@dataclass(frozen=True)
class RandomTokens(Corpus):
    """Documents of tokens drawn at random, which fill blocks of `CONTEXT` without a rest.

    Attributes:
        blocks: How many blocks they fill.
        vocabulary: Tokens are drawn below this number.
    """

    blocks: int
    vocabulary: int = 1000

    def documents(self) -> Iterator[Document]:
        """One document to the block, which an end-of-text token completes."""
        random = np.random.default_rng(0)
        for _ in range(self.blocks):
            yield random.integers(1, self.vocabulary, CONTEXT - 1)

    def fingerprint(self) -> dict[str, int | str]:
        """The arguments, which determine every token."""
        return {"kind": "random tokens", "blocks": self.blocks, "vocabulary": self.vocabulary}


def save_random_gpt2(folder: Path) -> None:
    """Save a model of GPT-2 small's shape, with the bundled model's tokenizer.

    Args:
        folder: Where to.
    """
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(mini_gpt2_folder())
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GPT2LMHeadModel(GPT2Config(**special)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
