"""Text of an atlas, windows around rows, and activation at each token of the vocabulary."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.analyses.stats.permutation import chunks
from palinka.data import ActivationDataModule, Context
from palinka.errors import track
from palinka.training import SparseAutoencoderModule

_POSITIONS = 1 << 32  # room for the position beside the document in one number


class Text:
    """Contexts as the language model reads them, with an index by document and position.

    `tokens`, `documents` and `positions` (-1 for BOS) are of all tokens, `(tokens,)`; `starts` has
    the start of each context and the end of the last, `(contexts + 1,)`.
    """

    def __init__(self, contexts: Iterable[Context]) -> None:
        blocks = [(c.tokens, c.documents, c.positions) for c in contexts]
        self.tokens, self.documents, self.positions = np.concatenate(blocks, axis=1, dtype=np.int64)
        self.starts = np.cumsum([0, *(len(tokens) for tokens, _, _ in blocks)])
        keys = self.documents * _POSITIONS + self.positions
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def locate(
        self, documents: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Indices into `tokens` of the given tokens of documents."""
        found = np.searchsorted(self._keys, documents * _POSITIONS + positions)
        return self._order[np.minimum(found, len(self._order) - 1)]

    def around(
        self, places: NDArray[np.int64], before: int, after: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Indices around each token, `(n, before + 1 + after)`, and a mask of its own context's."""
        context = np.searchsorted(self.starts, places, side="right") - 1
        window = places[:, None] + np.arange(-before, after + 1)
        first, last = self.starts[context][:, None], self.starts[context + 1][:, None]
        return np.clip(window, 0, len(self.tokens) - 1), (first <= window) & (window < last)

    def groups(self, tokens: int) -> Iterator[tuple[int, int, int]]:
        """Start, stop and context length of groups of contexts of about `tokens` tokens each."""
        first = 0
        for length, alike in groupby(np.diff(self.starts).tolist()):
            count = len(list(alike))
            for part in chunks(count, max(1, tokens // length)):
                start, stop = self.starts[[first + part.start, first + part.stop]].tolist()
                yield start, stop, length
            first += count


BEFORE, AFTER = 15, 9  # tokens of a window around its row's own
GROUP_TOKENS = 4096  # that go through the language model and the autoencoder at a time
PIECE = 1 << 16  # windows looked up at a time


@dataclass(frozen=True)
class Windows:
    """Windows of text around rows, `n` for each latent.

    Where there is no row, `places` is -1; beyond the context, `tokens` are.
    """

    places: NDArray[np.int64]  # index of the row's token in the text, (latents, n)
    tokens: NDArray[np.int32]  # (latents, n, BEFORE + 1 + AFTER), the row's own at BEFORE
    activations: NDArray[np.float32]  # of the latent at each of these tokens
    documents: NDArray[np.int64]  # (latents, n)
    positions: NDArray[np.int64]  # of the row's token in its document, (latents, n)

    @property
    def peak(self) -> NDArray[np.float32]:
        """Activation at the row's own token, `(latents, n)`."""
        return self.activations[:, :, BEFORE]

    def chosen(self, columns: NDArray[np.int64]) -> "Windows":
        """Selected windows of each latent; `columns` is `(latents, m)`, -1 for none."""
        latent = np.arange(len(columns))[:, None]
        chosen = Windows(*(array[latent, columns] for array in vars(self).values()))
        chosen.places[columns < 0] = -1
        return chosen


def read_windows(
    data: ActivationDataModule, module: SparseAutoencoderModule, text: Text, rows: NDArray[np.int64]
) -> Windows:
    """Read the text around validation rows, `(latents, n)`, with the latents' activations."""
    known, inverse = np.unique(np.append(rows, -1), return_inverse=True)  # -1 comes first
    contexts = [data.validation_rows.context(row) for row in known[1:].tolist()]
    pairs = np.array([(c.document, c.position) for c in contexts], dtype=np.int64)
    found = text.locate(*pairs.reshape(-1, 2).T)
    places = np.append(-1, found)[inverse[:-1].reshape(rows.shape)]
    latent, column = np.nonzero(places >= 0)
    order = np.argsort(places[latent, column], kind="stable")
    latent, column = latent[order], column[order]
    wanted = places[latent, column]
    shape = (*rows.shape, BEFORE + 1 + AFTER)
    tokens, activations = np.full(shape, -1, dtype=np.int32), np.zeros(shape, dtype=np.float32)
    groups = list(text.groups(GROUP_TOKENS))
    for start, stop, length in track(groups, "reading contexts", len(groups)):
        first, last = np.searchsorted(wanted, [start, stop]).tolist()
        if first == last:
            continue
        latents = encode_contexts(data, module, text.tokens[start:stop].reshape(-1, length))
        for piece in chunks(last - first, PIECE):
            some = slice(first + piece.start, first + piece.stop)
            window, inside = text.around(wanted[some], BEFORE, AFTER)
            values = latents[np.where(inside, window - start, 0), latent[some, None]]
            activations[latent[some], column[some]] = np.where(inside, values, 0.0)
            tokens[latent[some], column[some]] = np.where(inside, text.tokens[window], -1)
    return Windows(places, tokens, activations, text.documents[places], text.positions[places])


@torch.no_grad()
def encode_contexts(
    data: ActivationDataModule, module: SparseAutoencoderModule, blocks: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Latents of every token of some contexts, `(tokens, latents)`."""
    spec = data.validation_spec
    site = spec.resolved_sites[0]
    ids = torch.from_numpy(np.ascontiguousarray(blocks))
    read = data.loaded_language_model.read_contexts(ids, [site])[site]
    # As the rows are stored, so that the same latents are active.
    stored = read.to(data.validation_rows.dtype).float().to(module.device)
    latents = module.encode(stored).float()
    latents[:, : spec.layout.skip] = 0.0  # left out of the rows
    return latents.flatten(0, 1).cpu().numpy()


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
