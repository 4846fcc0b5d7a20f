"""P-values from statistics under shuffled labels."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Sums in another order differ by rounding; statistics closer than this are equal.
RELATIVE_TOLERANCE = 1e-10


def permutation_p_values(observed: ArrayLike, null: ArrayLike) -> NDArray[np.float64]:
    """How often chance does at least as well: `(1 + #{null >= observed}) / (n + 1)`.

    Args:
        observed: Statistics of which high values count as evidence, not negative, any shape.
        null: The statistic under each of `n` shuffles, `(n,)`; where there are many observed
            ones, the largest of them, which corrects for their number.

    Returns:
        One p-value for each observed statistic; none is 0.

    Source:
        Phipson & Smyth (2010) for the ones; Westfall & Young (1993) for the largest.
    """
    ascending = np.sort(np.asarray(null, dtype=np.float64))
    threshold = np.asarray(observed, dtype=np.float64) * (1.0 - RELATIVE_TOLERANCE)
    at_least = len(ascending) - np.searchsorted(ascending, threshold, side="left")
    return np.asarray((1.0 + at_least) / (len(ascending) + 1.0))
