"""Control units that are matched to selected ones."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# A control is one of this many unselected units that are nearest to its selected unit.
NEAREST = 20


class Matched(NamedTuple):
    """Sets of control units, and how far they are from the selected ones.

    Attributes:
        controls: `(draws, k)`; the control of each selected unit, in their order.
        before: Mean of the selected units minus that of all others, by covariate, in standard
            deviations of the normal scores over all units.
        after: Mean of the selected units minus that of their controls in all draws.
    """

    controls: Ints
    before: Floats
    after: Floats


def normal_scores(values: ArrayLike) -> Floats:
    """Standard normal quantiles of the ranks, ties at their mean rank: `Φ⁻¹(rank / (n + 1))`.

    Values that agree to 6 decimals are tied, so that norms of 1 up to rounding are.
    """
    rounded = np.asarray(values).round(6)
    _, index, counts = np.unique(rounded, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(ndtri(ranks / (len(index) + 1))[index])


def match_units(
    covariates: ArrayLike, selected: Sequence[int] | Ints, draws: int, seed: int | Sequence[int] = 0
) -> Matched:
    """Draw sets of unselected units that are like the selected ones, unit by unit.

    Covariates become normal scores over all units. In each draw the selected units are visited in
    random order, and each gets one of the `NEAREST` unselected units that are left, at random.

    Args:
        covariates: `(covariates, units)`.
        selected: The k selected units, at most half of all.
        draws: Number of sets.
        seed: Seed of the draws.

    Source:
        Rosenbaum & Rubin (1985) for matching without replacement and the standardized difference.
    """
    scores = np.stack([normal_scores(values) for values in np.asarray(covariates)])
    chosen, units = np.asarray(selected, np.int64), scores.shape[1]
    k = len(chosen)
    others = np.setdiff1d(np.arange(units), chosen)
    distance = np.square(scores[:, chosen, None] - scores[:, None, others]).sum(0)
    distance = distance.round(9)  # quantiles lie on a grid: ties are many, but for their rounding
    # No more can be taken before the last of the k is visited.
    nearest = np.argsort(distance, axis=1, kind="stable")[:, : NEAREST + k - 1]
    random = np.random.default_rng(seed)
    visits = random.permuted(np.tile(np.arange(k), (draws, 1)), axis=1)
    taken, controls = np.zeros((draws, len(others)), bool), np.empty((draws, k), np.int64)
    every = np.arange(draws)
    for step, visited in enumerate(visits.T):
        near = nearest[visited]
        free = ~taken[every[:, None], near]
        nth = random.integers(min(NEAREST, len(others) - step), size=(draws, 1))
        place = ((np.cumsum(free, axis=1) == nth + 1) & free).argmax(1)
        control = near[every, place]
        taken[every, control] = True
        controls[every, visited] = others[control]
    spread = scores.std(axis=1)
    spread[spread == 0] = 1.0
    own = scores[:, chosen].mean(1)
    before = (own - scores[:, others].mean(1)) / spread
    return Matched(controls, before, (own - scores[:, controls].mean((1, 2))) / spread)
