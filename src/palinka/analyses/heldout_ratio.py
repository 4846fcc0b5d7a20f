"""Variance ratio of a generalized eigenvector in items that it was not fitted to."""

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from palinka.analyses.covariance_shrinkage import Shrinkage, shrinkage_intensity, shrunk

HALVES = 50
# Smaller ratios of variances are rounding.
_NO_VARIANCE = np.finfo(np.float64).eps


def leading_filter(
    more: NDArray[np.float64], less: NDArray[np.float64], shrinkage: Shrinkage
) -> NDArray[np.float64]:
    """The direction with the most variance in `more` per shrunk variance in `less`.

    Solved among the items of `more` where they are fewer than the dimensions.

    Args:
        more: `(items, r)`.
        less: `(items, r)`.
        shrinkage: Of the covariance of `less`.

    Returns:
        `(r,)`, of any length and sign.

    Raises:
        numpy.linalg.LinAlgError: If the shrunk covariance of `less` is singular.
    """
    centered = more - more.mean(axis=0)
    if len(centered) > centered.shape[1]:
        centered = np.linalg.qr(centered, mode="r")
    remaining = less - less.mean(axis=0)
    covariance = remaining.T @ remaining / (len(less) - 1)
    factor = scipy.linalg.cho_factor(
        shrunk(covariance, shrinkage_intensity(less, shrinkage)), check_finite=False
    )
    solved = scipy.linalg.cho_solve(factor, centered.T, check_finite=False)
    last = len(centered) - 1
    _, top = scipy.linalg.eigh(centered @ solved, subset_by_index=(last, last), check_finite=False)
    direction: NDArray[np.float64] = solved @ top[:, 0]
    return direction


def heldout_ratio(
    a: NDArray[np.float64], b: NDArray[np.float64], shrinkage: Shrinkage, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit both filters on one half of each condition, and take the variance ratios on the other.

    Item i of A and item i of B fall into the same half where both conditions have the same number
    of items, so that matched pairs stay together.

    The geometric mean is 1 where nothing carries over and the halves that are tested are of the
    same size; with `m` and `k` normal items it is `exp(1 / k - 1 / m)` to first order. The
    arithmetic mean of a variance ratio is larger: with `d` degrees of freedom in the denominator
    `d / (d - 2)`.

    Args:
        a: `(n_a, r)`, at least four items.
        b: `(n_b, r)`, at least four items.
        shrinkage: Of the denominators that the filters are fitted with; the ratios are of plain
            variances.
        seed: Of the draws of halves.

    Returns:
        For the filter of A over B the variance in A over that in B, and for the filter of B over
        A the variance in B over that in A; of each `(3,)`: geometric mean, 2.5 and 97.5
        percentile.

    Raises:
        numpy.linalg.LinAlgError: If a denominator's shrunk covariance is singular, or a half that
            is tested does not vary.
    """
    draw_a, draw_b = np.random.default_rng(seed), np.random.default_rng(seed)
    ratios = np.empty((HALVES, 2))
    for half in range(HALVES):
        fit_a, test_a = _halves(a, draw_a)
        fit_b, test_b = _halves(b, draw_b)
        for direction, (more, less, top, bottom) in enumerate(
            ((fit_a, fit_b, test_a, test_b), (fit_b, fit_a, test_b, test_a))
        ):
            filter_ = leading_filter(more, less, shrinkage)
            numerator, denominator = (np.var(part @ filter_, ddof=1) for part in (top, bottom))
            if min(numerator, denominator) <= _NO_VARIANCE * max(numerator, denominator):
                raise np.linalg.LinAlgError("half of the items do not vary")
            ratios[half, direction] = numerator / denominator
    low, high = np.percentile(ratios, (2.5, 97.5), axis=0)
    summary = np.stack((np.exp(np.log(ratios).mean(axis=0)), low, high))
    return summary[:, 0], summary[:, 1]


def _halves(
    x: NDArray[np.float64], draw: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The larger half to fit, the other to test."""
    order = draw.permutation(len(x))
    middle = (len(x) + 1) // 2
    return x[order[:middle]], x[order[middle:]]
