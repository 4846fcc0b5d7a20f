"""How the activations of every latent are distributed, counted while batches go by."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.result import as_matrix
from palinka.errors import InputError


@dataclass(frozen=True)
class ActivationHistogram:
    """Counts of the non-zero magnitudes of every latent, in bins of one width from 0 on.

    Attributes:
        counts: `(latents, bins)`; bin `i` holds those from `i` up to `i + 1` widths.
        width: The width of a latent's bins, a power of two over the number of bins; 0 where it
            is never active.
    """

    counts: NDArray[np.int64]
    width: NDArray[np.float64]


class HistogramCounter:
    """Counts activations exactly, without knowing beforehand how large they are.

    The bins of a latent reach up to a power of two. An activation beyond it doubles their width:
    neighbors are merged, and every count stays true. At the end more than half of the bins'
    range is in use.

    Args:
        latents: How many latents there are.
        bins: How many bins each has; a power of two.

    Raises:
        InputError: If there are no latents, or `bins` is no power of two.
    """

    def __init__(self, latents: int, bins: int = 64) -> None:
        if latents < 1 or bins < 2 or bins & (bins - 1):
            raise InputError(
                f"a histogram of {latents} latents in {bins} bins; give at least one latent, and a"
                " power of two"
            )
        self._counts = np.zeros((latents, bins), dtype=np.int64)
        # The bins reach up to two to this power.
        self._power = np.full(latents, _NONE, dtype=np.int64)

    def add(self, batch: ArrayLike) -> None:
        """Take the next rows of activations, `(rows, latents)`.

        Raises:
            InputError: If it is no matrix of these latents, or holds NaN or infinities.
        """
        matrix = as_matrix(batch, "latents", minimum_rows=0)
        latents, bins = self._counts.shape
        if matrix.shape[1] != latents:
            raise InputError(
                f"a batch of {matrix.shape[1]} latents; what came before has {latents}"
            )
        row, latent = np.nonzero(matrix)
        magnitude = np.abs(matrix[row, latent]).astype(np.float64)
        largest = np.zeros(latents)
        np.maximum.at(largest, latent, magnitude)
        self._widen(np.frexp(largest)[1], largest > 0)
        # Exact, for it only changes the exponent.
        place = np.ldexp(magnitude, int(np.log2(bins)) - self._power[latent]).astype(np.int64)
        flat = np.bincount(latent * bins + place, minlength=latents * bins)
        self._counts += flat.reshape(latents, bins)

    def found(self) -> ActivationHistogram:
        """What has been counted so far."""
        used = self._power > _NONE
        power = np.where(used, self._power, 0)
        width = np.where(used, np.ldexp(1.0, power) / self._counts.shape[1], 0.0)
        return ActivationHistogram(self._counts.copy(), width)

    def _widen(self, power: NDArray[np.int32], active: NDArray[np.bool_]) -> None:
        """Let the bins of each active latent reach at least up to two to the given power."""
        bins = self._counts.shape[1]
        fresh = active & (self._power == _NONE)
        self._power[fresh] = power[fresh]
        steps = np.where(active, power - self._power, 0)
        for step in np.unique(steps[steps > 0]).tolist():
            which = np.flatnonzero(steps == step)
            merged = np.zeros((len(which), bins), dtype=np.int64)
            together = min(1 << min(step, 62), bins)
            kept = self._counts[which].reshape(len(which), bins // together, together).sum(axis=2)
            merged[:, : bins // together] = kept
            self._counts[which] = merged
            self._power[which] += step


# Below the exponent of every number.
_NONE = -(1 << 20)


def activation_histogram(batches: Iterable[ArrayLike], bins: int = 64) -> ActivationHistogram:
    """Count the non-zero magnitudes of every latent, in one pass.

    Args:
        batches: Activations, `(rows, latents)` each, of which one at a time is held.
        bins: How many bins each latent has; a power of two.

    Raises:
        InputError: If there are no batches, or one does not fit or is not finite.
    """
    counter: HistogramCounter | None = None
    for batch in batches:
        if counter is None:
            counter = HistogramCounter(np.shape(batch)[1], bins)
        counter.add(batch)
    if counter is None:
        raise InputError("there are no latents: expected at least one batch")
    return counter.found()
