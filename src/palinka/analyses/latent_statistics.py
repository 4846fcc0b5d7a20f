"""Density and strength of each latent."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.result import Result, Table, as_matrix, takes
from palinka.analyses.stats.permutation import chunks
from palinka.errors import InputError

# Maximum number of elements summed at a time, which stay in the processor's cache.
CHUNK_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class LatentStatistics(Result):
    """Density, strength and mass of every latent; arrays are `(latents,)`.

    Attributes:
        density: The share of tokens at which the latent is not zero, in per cent.
        activation: The mean magnitude over those tokens; 0 where there are none.
        mass: `density * activation`, in per cent times the activation's unit.
        dead: True where the latent is zero at every token.
    """

    density: NDArray[np.float64]
    activation: NDArray[np.float64]
    mass: NDArray[np.float64]
    dead: NDArray[np.bool_]

    headline: ClassVar[tuple[str, ...]] = ("alive", "l0", "mean_density", "mean_activation")

    @property
    def alive(self) -> float:
        """The share of latents that are not dead, in per cent."""
        return 100.0 * float(1.0 - self.dead.mean())

    @property
    def l0(self) -> float:
        """Mean number of latents that are active at a token."""
        return float(self.density.sum()) / 100.0

    @property
    def mean_density(self) -> float:
        """The mean density of the latents that are not dead, in per cent; 0 if all are."""
        return float(self.density.sum()) / max(1, int((~self.dead).sum()))

    @property
    def mean_activation(self) -> float:
        """The mean activation of the latents that are not dead; 0 if all are."""
        return float(self.activation.sum()) / max(1, int((~self.dead).sum()))

    def tables(self) -> dict[str, Table]:
        """One row for each latent."""
        return {"latents": {"latent": np.arange(len(self.density)), **self.arrays()}}


@takes("tokens of a passage")
def latent_statistics(latents: ArrayLike | Iterable[ArrayLike]) -> LatentStatistics:
    """Measure density, activation and mass of each latent in one pass.

    Counts are exact and sums are float64, so the result does not depend on how the tokens
    are divided into batches. Signed activations count by their magnitude. They describe these
    tokens: nothing is tested, since tokens of a text are not independent.

    Args:
        latents: Activations, `(tokens, latents)`, or an iterable of such batches, of which
            one at a time is held.

    Returns:
        Density (per cent), activation, mass and deadness of every latent.

    Raises:
        InputError: If there are no tokens, if batches differ in their number of latents, or if
            a batch is not a matrix or holds NaN or infinities.
    """
    tokens = 0
    counts, sums = np.zeros(0, dtype=np.int64), np.zeros(0)
    for name, batch in _batches(latents):
        matrix = as_matrix(batch, name, minimum_rows=0)
        if len(counts) == 0:
            counts, sums = np.zeros(matrix.shape[1], dtype=np.int64), np.zeros(matrix.shape[1])
        if matrix.shape[1] != len(counts):
            raise InputError(
                f"{name} is {matrix.shape[1]} wide and what came before is {len(counts)}; give "
                "batches of the same latents"
            )
        tokens += len(matrix)
        for rows in chunks(len(matrix), CHUNK_ELEMENTS // matrix.shape[1]):
            part = matrix[rows]
            counts += np.add.reduce(part != 0, axis=0, dtype=np.int64)
            sums += np.add.reduce(np.abs(part), axis=0, dtype=np.float64)
    if tokens == 0:
        raise InputError("there are no latents: expected at least one token")
    dead = counts == 0
    density = 100.0 * counts / tokens
    activation = sums / np.maximum(counts, 1)
    notes = ("every latent is zero at every token",) if dead.all() else ()
    return LatentStatistics(density, activation, density * activation, dead, notes=notes)


def _batches(latents: ArrayLike | Iterable[ArrayLike]) -> Iterator[tuple[str, ArrayLike]]:
    """Names and batches: an array is one batch, any other iterable is many."""
    if hasattr(latents, "ndim"):
        yield "latents", cast(ArrayLike, latents)
    elif isinstance(latents, Iterable):
        for number, batch in enumerate(latents):
            yield f"batch {number} of latents", batch
    else:
        raise InputError(
            f"latents are {type(latents).__name__}; expected an array (tokens, latents) or an "
            "iterable of such arrays"
        )
