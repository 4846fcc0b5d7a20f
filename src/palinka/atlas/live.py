"""The activations of every latent on a text that somebody has typed."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.atlas.encoding import short
from palinka.errors import InputError
from palinka.figures.display_tokens import display_tokens
from palinka.language_models import LanguageModel, Tokens
from palinka.stimuli.display import token_bytes
from palinka.tokenization import bos_id, token_ids
from palinka.training import SparseAutoencoderModule

# Shown of each token.
TOP = 10


@dataclass
class LiveLatents:
    """A language model and the latents at one of its sites, for one text at a time.

    Attributes:
        model: The language model.
        site: What the autoencoder reads.
        module: The autoencoder with its scaling, on any device.
        bos: Whether contexts began with a BOS token in training; it is read and not shown.
        skip: How many tokens at the beginning were left out of training.
    """

    model: LanguageModel
    site: str
    module: SparseAutoencoderModule
    bos: bool = False
    skip: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[str, list[int], NDArray[np.float32]] | None = None

    def answer(self, text: str, latent: int | None = None) -> dict[str, Any]:
        """What there is to say of a text, as plain values.

        Args:
            text: The text.
            latent: Only say how active this one is at each token.

        Returns:
            With a latent, `values`: its activation at each token. Otherwise `tokens`: id and
            text of each, `top`: for each token its most active latents and their activations,
            and `active`: of every latent that is active anywhere its number, its largest
            activation, where that is, and at how many tokens it is active.

        Raises:
            InputError: If the text has no tokens, or more than the model's context, or there is
                no such latent.
        """
        count = self.module.autoencoder.latent_dim
        if latent is not None and not 0 <= latent < count:
            raise InputError(f"there is no latent {latent}; they are 0 to {count - 1}")
        with self._lock:  # one text at a time goes through the model
            if self._last is None or self._last[0] != text:
                self._last = (text, *self._read(text))
            _, ids, latents = self._last
        if latent is not None:
            return {"values": [short(value) for value in latents[:, latent]]}
        shown = display_tokens(token_bytes(self.model.tokenizer, ids))
        return {
            "tokens": [[token, text] for token, text in zip(ids, shown, strict=True)],
            "top": [_strongest(row) for row in latents],
            "active": _active(latents),
        }

    @torch.no_grad()
    def _read(self, text: str) -> tuple[list[int], NDArray[np.float32]]:
        (found,) = token_ids(self.model.tokenizer, [text])
        ids = [bos_id(self.model.tokenizer), *found] if self.bos else found
        if not found:
            raise InputError("the text has no tokens; type some")
        if len(ids) > self.model.context_length:
            raise InputError(
                f"the text has {len(ids)} tokens, and the model's context"
                f" {self.model.context_length}; shorten it"
            )
        read = self.model.read(Tokens.of([ids]), [self.site])[self.site][0]
        latents = self.module.encode(read.float().to(self.module.device)).float()
        latents[: self.skip] = 0.0
        return found, latents[int(self.bos) :].cpu().numpy()


def _strongest(row: NDArray[np.float32]) -> list[list[Any]]:
    order: Sequence[int] = np.argsort(-row, kind="stable")[:TOP].tolist()
    return [[latent, short(row[latent])] for latent in order if row[latent] > 0]


def _active(latents: NDArray[np.float32]) -> list[list[Any]]:
    """Every latent that is active anywhere, the most active one first."""
    largest, where = latents.max(axis=0), latents.argmax(axis=0)
    tokens = (latents > 0).sum(axis=0)
    order = np.argsort(-largest, kind="stable")[: int((largest > 0).sum())]
    return [
        [int(latent), short(largest[latent]), int(where[latent]), int(tokens[latent])]
        for latent in order
    ]
