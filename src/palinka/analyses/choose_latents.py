"""Latents worth looking at, by rank or by number."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from palinka.errors import InputError


def choose_latents(
    values: ArrayLike, ranks: Sequence[int] = (1, 10, 31), numbers: Sequence[int] = ()
) -> tuple[int, ...]:
    """Choose latents by their ranks under some criterion, and others by their numbers.

    Args:
        values: The criterion, such as score, activation, density or mass, `(latents,)`.
        ranks: 1 is the highest value; of equal values the lower number comes first.
        numbers: Latents by their index, from 0.

    Returns:
        The latents' indices, in the order asked for, each once.

    Raises:
        InputError: If a rank or number is not that of a latent.
    """
    criterion = np.asarray(values, dtype=np.float64)
    latents = len(criterion)
    for rank in ranks:
        if not 1 <= rank <= latents:
            raise InputError(f"rank {rank} was asked for; expected 1 to {latents}, the latents")
    for number in numbers:
        if not 0 <= number < latents:
            raise InputError(f"latent {number} was asked for; expected 0 to {latents - 1}")
    order = np.argsort(-criterion, kind="stable")
    by_rank = [int(order[rank - 1]) for rank in ranks]
    return tuple(dict.fromkeys([*by_rank, *numbers]))
