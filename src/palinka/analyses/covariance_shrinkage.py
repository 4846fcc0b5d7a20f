"""Covariances pulled towards a multiple of the identity, by a given or an estimated amount."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from palinka.errors import InputError

Estimator = Literal["ledoit_wolf", "oas"]
Shrinkage = float | Estimator
ESTIMATORS: tuple[Estimator, ...] = ("ledoit_wolf", "oas")


def check_shrinkage(shrinkage: Shrinkage) -> None:
    """Refuse what is neither an intensity nor the name of an estimator.

    Raises:
        InputError: If it is no number in [0, 1) and none of `ESTIMATORS`.
    """
    if shrinkage in ESTIMATORS:
        return
    if isinstance(shrinkage, str) or not 0.0 <= shrinkage < 1.0:
        raise InputError(
            f"shrinkage={shrinkage!r}; expected a number from 0 to below 1, "
            f"{' or '.join(repr(name) for name in ESTIMATORS)}"
        )


def shrinkage_intensity(x: NDArray[np.float64], shrinkage: Shrinkage) -> float:
    """How far the covariance of `x` is to be shrunk, from 0 (not at all) to 1.

    Args:
        x: `(items, r)`.
        shrinkage: The intensity itself, or the estimator that finds it in the data.

    Source:
        Ledoit and Wolf (2004); Chen, Wiesel, Eldar and Hero (2010), both as in scikit-learn,
        whose formulas take the covariance that divides by the number of items.
    """
    if not isinstance(shrinkage, str):
        return float(shrinkage)
    n, r = x.shape
    if r == 1:
        return 0.0
    x = x - x.mean(axis=0)
    # The smaller of the two Gram matrices has the same trace and the same sum of squares.
    gram = (x @ x.T if n < r else x.T @ x) / n
    trace, squares = float(np.trace(gram)), float((gram**2).sum())
    if shrinkage == "oas":
        numerator = squares / r**2 + (trace / r) ** 2
        denominator = (n + 1) * (squares / r**2 - (trace / r) ** 2 / r)
        return 1.0 if denominator == 0.0 else min(numerator / denominator, 1.0)
    fourth = float(((x**2).sum(axis=1) ** 2).sum())
    error = (fourth / n - squares) / (r * n)
    distance = (squares - trace**2 / r) / r
    error = min(error, distance)
    return 0.0 if error == 0.0 else error / distance


def shrunk(covariance: NDArray[np.float64], intensity: float) -> NDArray[np.float64]:
    """`(1 - intensity) S + intensity * mean(eig(S)) * I`, for one or a stack of `(r, r)`."""
    r = covariance.shape[-1]
    mean = np.trace(covariance, axis1=-2, axis2=-1) / r
    result = (1.0 - intensity) * covariance
    diagonal = np.arange(r)
    result[..., diagonal, diagonal] += intensity * np.expand_dims(mean, -1)
    return result
