"""Does a generalized eigenvector still separate two conditions in items it was not fitted to?"""

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from palinka.analyses.covariance_shrinkage import Shrinkage, shrinkage_intensity, shrunk

HALVES = 50


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

    Items of equal number fall into the same half in either condition, so that where the two
    conditions are two versions of the same frames, no frame is in both halves.

    Args:
        a: `(n_a, r)`, at least four items.
        b: `(n_b, r)`, at least four items.
        shrinkage: Of the denominators that the filters are fitted with; the ratios are of plain
            variances.
        seed: Of the draws of halves.

    Returns:
        For the filter of A over B the variance in A over that in B, and for the filter of B over
        A the variance in B over that in A; of each `(3,)`: mean, 2.5 and 97.5 percentile.

    Raises:
        numpy.linalg.LinAlgError: If a denominator's shrunk covariance is singular.
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
            with np.errstate(divide="ignore"):
                ratios[half, direction] = np.var(top @ filter_, ddof=1) / np.var(
                    bottom @ filter_, ddof=1
                )
    low, high = np.percentile(ratios, (2.5, 97.5), axis=0)
    summary = np.stack((ratios.mean(axis=0), low, high))
    return summary[:, 0], summary[:, 1]


def _halves(
    x: NDArray[np.float64], draw: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The larger half to fit, the other to test."""
    order = draw.permutation(len(x))
    middle = (len(x) + 1) // 2
    return x[order[:middle]], x[order[middle:]]
