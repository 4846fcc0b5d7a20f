"""Permutation p-values and corrections for multiple tests."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.errors import progress


def chunks(length: int, size: int) -> Iterator[slice]:
    """Slices of `size` entries or fewer, at least one, that divide `length` entries in order."""
    size = max(1, size)
    for start in range(0, length, size):
        yield slice(start, min(length, start + size))


# Sums in another order differ by rounding; statistics closer than this are equal.
RELATIVE_TOLERANCE = 1e-10


def permutation_p_values(observed: ArrayLike, null: ArrayLike) -> NDArray[np.float64]:
    """P-value of each observed statistic: `(1 + #{null >= observed}) / (n + 1)`.

    High values, not negative, count as evidence. The null is the statistic under each of `n`
    shuffles, `(n,)`; of many observed ones the largest, which corrects for their number.

    Source:
        Phipson & Smyth (2010) for the ones; Westfall & Young (1993) for the largest.
    """
    ascending = np.sort(np.asarray(null, dtype=np.float64))
    threshold = np.asarray(observed, dtype=np.float64) * (1.0 - RELATIVE_TOLERANCE)
    at_least = len(ascending) - np.searchsorted(ascending, threshold, side="left")
    return np.asarray((1.0 + at_least) / (len(ascending) + 1.0))


# Maximum number of elements of a working array.
CHUNK_ELEMENTS = 1 << 22


def critical_value(null: NDArray[np.float64], alpha: float = 0.05) -> float:
    """Value above which p is at most `alpha`; infinite for too few draws."""
    allowed = int(alpha * (len(null) + 1))  # the observed value is one of the draws
    return float(np.sort(null)[-allowed]) if allowed else np.inf


def max_t(
    t: NDArray[np.float64], samples: Sequence[NDArray[np.float64]], permutations: int, seed: int,
    alpha: float = 0.05,
) -> tuple[NDArray[np.float64], float]:  # fmt: skip
    """Adjust p-values for the number of units by flipping the signs of whole items.

    Second comes the |t| above which they are at most `alpha`. `t` is the sum of the means of one or
    two samples, `(items, units)` each, over its standard error, `(units,)`; every unit varies in
    one of them.

    With one sample, its items change sign: exact where they are symmetric about 0. With two, the
    residuals about each sample's own mean do, and each draw has its own standard errors, so that
    sizes and variances may differ between the samples. That is approximate: it holds the
    family-wise error from about 8 items in each sample, where their distributions are symmetric.
    Items stay whole, so correlations between units are kept.

    Source:
        Westfall & Young (1993); Nichols & Holmes (2002); Wu (1986) and Mammen (1993) for
        residuals of random sign.
    """
    rng = np.random.default_rng(seed)
    if len(samples) > 1:
        samples = [sample - sample.mean(axis=0) for sample in samples]
    squares = [np.square(sample).sum(axis=0) for sample in samples]
    sizes = [len(sample) for sample in samples]
    largest = np.empty(permutations)
    with progress("Flipping signs", permutations, "flips") as bar:
        for some in chunks(permutations, CHUNK_ELEMENTS // len(t)):
            signs = np.where(rng.random((len(largest[some]), sum(sizes))) < 0.5, -1.0, 1.0)
            mean, error = np.zeros((2, len(signs), len(t)))
            each = np.split(signs, np.cumsum(sizes)[:-1], axis=1)
            for n, sample, square, sign in zip(sizes, samples, squares, each, strict=True):
                sums = sign @ sample
                mean += sums / n
                error += (square - np.square(sums) / n) / (n * (n - 1))
            # t² / (1 + t²) grows with |t|, and is finite and exact where the error is 0.
            squared_mean = np.square(mean)
            largest[some] = (squared_mean / (squared_mean + error)).max(axis=1)
            bar.update(len(signs))
    bound = critical_value(largest, alpha)
    threshold = np.sqrt(bound / (1.0 - bound)) if bound < 1.0 else np.inf
    return permutation_p_values(np.square(t) / (1.0 + np.square(t)), largest), float(threshold)
