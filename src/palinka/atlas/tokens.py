"""Activation of latents at each token of the vocabulary."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_ACTIVE = 256  # latents counted at a place, the strongest


class TokenActivations(NamedTuple):
    """Every pair of a token and a latent that is active at it, by token, then by latent."""

    ids: NDArray[np.int64]  # of the tokens that occur, ascending
    counts: NDArray[np.int64]  # of the occurrences of each
    token: NDArray[np.int64]  # place in `ids` of each pair's token
    latent: NDArray[np.int64]
    mean: NDArray[np.float64]  # over the token's occurrences, zeros included
    maximum: NDArray[np.float32]

    def of_tokens(self, n: int) -> NDArray[np.int64]:
        """Pairs of the `n` latents with the largest mean or maximum, by token and mean."""
        either = largest(self.token, self.mean, n), largest(self.token, self.maximum, n)
        kept = np.union1d(*either)
        return kept[np.lexsort((-self.mean[kept], self.token[kept]))]

    def of_latents(self, n: int, latents: int) -> list[NDArray[np.int64]]:
        """Pairs of the `n` tokens that hold the most of each latent's activation."""
        kept = largest(self.latent, self.mean * self.counts[self.token], n)
        return np.split(kept, np.searchsorted(self.latent[kept], np.arange(1, latents)))


class TokenCounter:
    """Sums up activations by token and latent; `tokens` has the token id of each row."""

    def __init__(self, tokens: NDArray[np.int32], latents: int) -> None:
        unique = np.unique(tokens.astype(np.int64), return_inverse=True, return_counts=True)
        self._ids, self._places, self._counts = unique
        self._latents, self._seen = latents, 0
        # Keys, sums and maxima of pairs: what is merged, then batches.
        self._parts: list[tuple[NDArray[Any], ...]] = [(np.empty(0, np.int64), *np.empty((2, 0)))]

    def add(self, batch: NDArray[np.float32]) -> None:
        """Add the latents of the next rows, `(rows, latents)`."""
        active = batch > 0
        crowded = np.flatnonzero(active.sum(axis=1) > MAX_ACTIVE)
        if len(crowded):
            ordered = np.partition(batch[crowded], -MAX_ACTIVE, axis=1)
            active[crowded] &= batch[crowded] >= ordered[:, -MAX_ACTIVE, None]
        row, latent = np.nonzero(active)
        values = batch[row, latent]
        self._parts.append(
            (self._places[row + self._seen] * self._latents + latent, values, values)
        )
        self._seen += len(batch)
        if sum(len(keys) for keys, *_ in self._parts[1:]) > len(self._parts[0][0]):
            self._merge()

    def result(self) -> TokenActivations:
        """The activations so far."""
        keys, sums, maxima = self._merge()
        token, latent = np.divmod(keys, self._latents)
        mean = sums / self._counts[token]
        return TokenActivations(self._ids, self._counts, token, latent, mean, maxima)

    def _merge(self) -> tuple[NDArray[Any], ...]:
        keys, sums, maxima = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        order = np.argsort(keys, kind="stable")
        first = np.flatnonzero(np.diff(keys[order], prepend=-1))
        sums, maxima = (
            np.add.reduceat(sums[order], first),
            np.maximum.reduceat(maxima[order], first),
        )
        self._parts = [(keys[order][first], sums, maxima)]
        return self._parts[0]


def largest(
    groups: NDArray[np.int64], values: NDArray[np.floating[Any]], n: int
) -> NDArray[np.int64]:
    """Indices of the `n` largest values of each group, by group and descending value."""
    order = np.lexsort((-values, groups))
    rank = np.arange(len(order)) - np.searchsorted(groups[order], groups[order])
    return order[rank < n]
