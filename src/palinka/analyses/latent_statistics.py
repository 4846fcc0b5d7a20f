"""Density and strength of each latent."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from palinka.analyses.result import Array, Mask, Result, Table, as_matrix, takes
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

    scalar_units: ClassVar = {
        "alive": "% of {}",
        "l0": "{} per token",
        "mean_density": "% of tokens",
    }

    density: Array
    activation: Array
    mass: Array
    dead: Mask

    def scalars(self) -> dict[str, float]:
        """Per cent alive, mean number active at a token, and means of those alive (or 0).

        Of neurons that are active at every token, the mean activation alone.
        """
        if (self.density == 100.0).all():
            return {"mean_activation": float(self.activation.mean())}
        alive = max(1, int((~self.dead).sum()))
        return {
            "alive": 100.0 * float(1.0 - self.dead.mean()),
            "l0": float(self.density.sum()) / 100.0,
            "mean_density": float(self.density.sum()) / alive,
            "mean_activation": float(self.activation.sum()) / alive,
        }

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

    Raises:
        InputError: If there are no tokens, or batches differ in width or hold NaN or infinities.
    """
    whole = hasattr(latents, "ndim")
    tokens = 0
    counts, sums = np.zeros(0, dtype=np.int64), np.zeros(0)
    batches: Any = [latents] if whole else latents
    for number, batch in enumerate(batches):
        name = "latents" if whole else f"batch {number} of latents"
        matrix = as_matrix(batch, name, minimum_rows=0)
        width = matrix.shape[1]
        if number == 0:
            counts, sums = np.zeros(width, dtype=np.int64), np.zeros(width)
        if width != len(counts):
            widths = f"{name} is {width} wide and what came before is {len(counts)}"
            raise InputError(f"{widths}; give batches of the same latents")
        tokens += len(matrix)
        for rows in chunks(len(matrix), CHUNK_ELEMENTS // width):
            part = matrix[rows]
            counts += np.add.reduce(part != 0, axis=0, dtype=np.int64)
            sums += np.add.reduce(np.abs(part), axis=0, dtype=np.float64)
    if tokens == 0:
        raise InputError("there are no latents: expected at least one token")
    dead = counts == 0
    density = 100.0 * counts / tokens
    activation = sums / np.maximum(counts, 1)
    silent = f"{dead.sum():,} of {len(dead):,} are silent on these {tokens:,} tokens"
    notes = (silent,) if dead.any() else ()
    return LatentStatistics(density, activation, density * activation, dead, notes=notes)
