"""Statistics per latent: selection, neighbors, top activations, histograms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.result import as_matrix, scaled
from palinka.analyses.stats.permutation import chunks
from palinka.errors import InputError

# Sums of ranks of this many rows are exact in float32, whose products take half the time.
MAX_FLOAT32_ROWS = 4095


def column_ranks(values: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """Ranks within each column, ties averaged, in a dtype in which their sums are exact."""
    from scipy.stats import rankdata  # slow to import

    ranks: NDArray[np.floating[Any]] = rankdata(values, axis=0)
    return ranks.astype(np.float32) if len(ranks) <= MAX_FLOAT32_ROWS else ranks


def auc_of_ranks(
    ranks: NDArray[np.floating[Any]], targets: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """AUC of each column as a detector of each labeling's targets, `(labelings, columns)`.

    It is the probability that a random target has a higher value than a random other row,
    where ties count one half; 0.5 is chance. `ranks` are from `column_ranks`, `(rows, columns)`; of
    the `targets`, `(labelings, rows)`, some rows in each, but not all, are true.

    Source:
        Hanley & McNeil (1982), by the statistic of Mann & Whitney (1947).
    """
    n_targets = targets.sum(axis=1, keepdims=True)
    sums = (targets.astype(ranks.dtype) @ ranks).astype(np.float64)
    wins = sums - n_targets * (n_targets + 1) / 2.0
    return np.asarray(wins / (n_targets * (targets.shape[1] - n_targets)))


def choose_latents(
    values: ArrayLike, ranks: Sequence[int] = (1, 10, 31), numbers: Sequence[int] = ()
) -> tuple[int, ...]:
    """Select latents by the rank of their values, `(latents,)`, or by index, each once.

    Rank 1 is the highest value; of equal values the lower index comes first.
    """
    order = np.argsort(-np.asarray(values, dtype=np.float64), kind="stable")
    latents = len(order)
    for rank in ranks:
        if not 1 <= rank <= latents:
            raise InputError(f"rank is {rank}; expected 1 to {latents}, the number of latents")
    for number in numbers:
        if not 0 <= number < latents:
            raise InputError(f"latent is {number}; expected 0 to {latents - 1}")
    return tuple(dict.fromkeys([*(int(order[rank - 1]) for rank in ranks), *numbers]))


# Maximum number of cosines held at a time.
CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class NearestLatents:
    """The nearest other directions of each, `(latents, n)`, in descending order of cosine."""

    latents: NDArray[np.int64]
    cosines: NDArray[np.float32]  # 0 with a direction of norm 0


def nearest_latents(dictionary: ArrayLike, n: int) -> NearestLatents:
    """Find the `n` other directions with the largest cosine to each direction.

    Of equal cosines the lower index comes first; there are fewer than `n` in a small dictionary,
    `(latents, width)`.
    """
    directions = scaled(as_matrix(dictionary, "dictionary"), axis=1)
    count = len(directions)
    n = min(n, count - 1)
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    unit = np.divide(directions, norms, out=np.zeros_like(directions), where=norms > 0)
    latents, cosines = np.empty((count, n), np.int64), np.empty((count, n), np.float32)
    for rows in chunks(count, CHUNK_ELEMENTS // count):
        block = unit[rows] @ unit.T
        own = np.arange(rows.start, rows.stop)
        block[np.arange(len(own)), own] = -np.inf
        # Of those as near as the last one that is kept, partitioning would keep any.
        least = -np.partition(-block, n - 1, axis=1)[:, n - 1]
        for row, (values, bound) in enumerate(zip(block, least, strict=True), start=rows.start):
            near = np.flatnonzero(values >= bound)
            near = near[np.argsort(-values[near], kind="stable")[:n]]
            latents[row], cosines[row] = near, np.clip(values[near], -1.0, 1.0)
    return NearestLatents(latents, cosines)


@dataclass(frozen=True)
class TopActivations:
    """The largest activations of every latent, `(latents, n)`, in descending order."""

    values: NDArray[np.float32]  # 0 where a latent has been active less often
    rows: NDArray[np.int64]  # their indices; -1 where there is none


class TopHeap:
    """The `n` largest positive activations of each latent so far, and their rows.

    Of equal activations the earlier row comes first.
    """

    def __init__(self, latents: int, n: int) -> None:
        self._values = np.zeros((latents, n), dtype=np.float32)
        self._rows = np.full((latents, n), -1, dtype=np.int64)
        self._seen = 0

    def add(self, batch: ArrayLike) -> None:
        """Add the next rows of activations, `(rows, latents)`."""
        n = self._values.shape[1]
        matrix = as_matrix(batch, "latents", minimum_rows=0)
        # An activation as large as the smallest kept one came later, and stays out.
        row, latent = np.nonzero(matrix > self._values[:, -1])
        new = matrix[row, latent].astype(np.float32)
        touched = np.unique(latent)
        values = np.concatenate([self._values[touched].reshape(-1), new])
        rows = np.concatenate([self._rows[touched].reshape(-1), row + self._seen])
        owners = np.concatenate([np.repeat(touched, n), latent])
        # Kept ones come first and in order, new ones by row: a stable order settles ties.
        order = np.lexsort((-values, owners))
        owners = owners[order]
        first = np.searchsorted(owners, touched)
        rank = np.arange(len(owners)) - first[np.searchsorted(touched, owners)]
        best = order[rank < n]
        self._values[touched] = values[best].reshape(-1, n)
        self._rows[touched] = rows[best].reshape(-1, n)
        self._seen += len(matrix)

    def result(self) -> TopActivations:
        """The largest so far."""
        return TopActivations(self._values.copy(), self._rows.copy())


@dataclass(frozen=True)
class ActivationHistogram:
    """Counts of the non-zero magnitudes of every latent, in bins of one width from 0 on.

    Widths are powers of two over the number of bins, or 0 where a latent is never active.
    """

    counts: NDArray[np.int64]  # (latents, bins)
    width: NDArray[np.float64]  # (latents,)


class HistogramCounter:
    """Exact histograms of activations whose range is not known beforehand.

    The bins of a latent, a power of two, reach up to a power of two. An activation beyond it
    doubles their width: neighbors are merged, and every count stays true.
    """

    def __init__(self, latents: int, bins: int = 64) -> None:
        self._counts = np.zeros((latents, bins), dtype=np.int64)
        # The bins reach up to two to this power: at first to 0, far below every number.
        self._power = np.full(latents, -(1 << 20), dtype=np.int64)

    def add(self, batch: ArrayLike) -> None:
        """Add the next rows of activations, `(rows, latents)`."""
        latents, bins = self._counts.shape
        matrix = as_matrix(batch, "latents", minimum_rows=0)
        row, latent = np.nonzero(matrix)
        magnitude = np.abs(matrix[row, latent]).astype(np.float64)
        largest = np.zeros(latents)
        np.maximum.at(largest, latent, magnitude)
        self._widen(np.frexp(largest)[1], largest > 0)
        # Exact, for it only changes the exponent.
        place = np.ldexp(magnitude, int(np.log2(bins)) - self._power[latent]).astype(np.int64)
        flat = np.bincount(latent * bins + place, minlength=latents * bins)
        self._counts += flat.reshape(latents, bins)

    def result(self) -> ActivationHistogram:
        """The counts so far."""
        width = np.ldexp(1.0, self._power) / self._counts.shape[1]
        return ActivationHistogram(self._counts.copy(), width)

    def _widen(self, power: NDArray[np.int32], active: NDArray[np.bool_]) -> None:
        """Extend the bins of each active latent at least up to two to the given power."""
        bins = self._counts.shape[1]
        steps = np.where(active, power - self._power, 0)
        for step in np.unique(steps[steps > 0]).tolist():
            which = np.flatnonzero(steps == step)
            together = min(1 << min(step, 62), bins)
            merged = self._counts[which].reshape(len(which), bins // together, together).sum(axis=2)
            self._counts[which] = 0
            self._counts[which, : bins // together] = merged
            self._power[which] += step
