"""Texts as token ids, right-padded with a mask."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from palinka.errors import InputError
from palinka.tokenization import bos_id, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokens:
    """Token ids of several texts, padded on the right.

    Attributes:
        ids: `(texts, tokens)`, int64; any valid id where there is no token.
        mask: `(texts, tokens)`, int64; 1 for a token, 0 for padding.

    Raises:
        InputError: If the shapes differ, a text has no token, or padding comes before a token.
    """

    ids: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.mask.shape or not self.ids.numel():
            raise InputError(
                f"ids of shape {tuple(self.ids.shape)} with a mask of {tuple(self.mask.shape)}; "
                "give both as (texts, tokens), with at least one text and one token"
            )
        if bool((self.mask[:, 1:] > self.mask[:, :-1]).any()) or not bool(self.mask[:, 0].all()):
            raise InputError("padding before a token, or a text of padding only; pad on the right")

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], pad: int = 0) -> "Tokens":
        """Pad sequences of ids, none of them empty, to the longest."""
        if not sequences:
            raise InputError("an empty list of texts; give at least one")
        for index, sequence in enumerate(sequences):
            if not len(sequence):
                raise InputError(f"text {index} has no tokens; leave empty texts out")
        longest = max(len(sequence) for sequence in sequences)
        ids = torch.full((len(sequences), longest), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.as_tensor(sequence, dtype=torch.long)
            mask[row, : len(sequence)] = 1
        return cls(ids, mask)

    @property
    def lengths(self) -> Tensor:
        """The number of tokens of each text, `(texts,)`."""
        return self.mask.sum(1)

    def rows(self, start: int, stop: int) -> "Tokens":
        """Some of the texts, padded to the longest of them."""
        longest = int(self.lengths[start:stop].max())
        return Tokens(self.ids[start:stop, :longest], self.mask[start:stop, :longest])

    def to(self, device: torch.device) -> "Tokens":
        """The same tokens on a device."""
        return Tokens(self.ids.to(device), self.mask.to(device))


def padded_tokens(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], bos: bool = False
) -> Tokens:
    """Tokenize texts by the rule of `palinka.tokenization`, and pad them on the right.

    The tokenizer needs no padding token of its own and is left as it is.

    Args:
        tokenizer: The language model's tokenizer.
        texts: At least one.
        bos: Whether each begins with the tokenizer's BOS token.

    Raises:
        InputError: If there is no text, one has no tokens, or the tokenizer has no BOS token.
    """
    if isinstance(texts, str):
        raise InputError(f"one string, {reprlib.repr(texts)}; give a list of texts")
    if not texts:
        raise InputError("an empty list of texts; give at least one")
    start = [bos_id(tokenizer)] if bos else []
    ids = [[*start, *found] if found else [] for found in token_ids(tokenizer, texts)]
    return Tokens.of(ids)


def padding_id(tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> int:
    """An id to fill up with: that of the padding or end-of-text token, or 0.

    A padding token that was added to the tokenizer alone has an id that the model cannot read.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int) and token < vocabulary:
            return token
    return 0
