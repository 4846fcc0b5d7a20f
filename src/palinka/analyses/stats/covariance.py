"""Covariance shrinkage and principal components."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from palinka.errors import InputError

Shrinkage = float | Literal["ledoit_wolf", "oas"]


def shrinkage_intensity(x: NDArray[np.float64], shrinkage: Shrinkage) -> float:
    """Shrinkage intensity of the covariance of `x`, `(items, r)`, of mean 0: 0 (none) to 1.

    Source:
        Ledoit and Wolf (2004); Chen, Wiesel, Eldar and Hero (2010), both as in scikit-learn,
        whose formulas take the covariance that divides by the number of items.
    """
    if not isinstance(shrinkage, str):
        return float(shrinkage)
    n, r = x.shape
    if r == 1:
        return 0.0
    # The smaller of the two Gram matrices has the same trace and the same sum of squares.
    gram = (x @ x.T if n < r else x.T @ x) / n
    trace, squares = float(np.trace(gram)), float((gram**2).sum())
    if shrinkage == "oas":
        numerator = squares / r**2 + (trace / r) ** 2
        denominator = (n + 1) * (squares / r**2 - (trace / r) ** 2 / r)
        return 1.0 if denominator == 0.0 else min(numerator / denominator, 1.0)
    fourth = float(((x**2).sum(axis=1) ** 2).sum())
    distance = (squares - trace**2 / r) / r
    error = min((fourth / n - squares) / (r * n), distance)
    return 0.0 if error == 0.0 else error / distance


def shrunk(covariance: NDArray[np.float64], intensity: float) -> NDArray[np.float64]:
    """`(1 - intensity) S + intensity * mean(eig(S)) * I`, for one or a stack of `(r, r)`."""
    diagonal = np.arange(covariance.shape[-1])
    mean = np.trace(covariance, axis1=-2, axis2=-1) / len(diagonal)
    result = (1.0 - intensity) * covariance
    result[..., diagonal, diagonal] += intensity * np.expand_dims(mean, -1)
    return result


# Below this share of the largest eigenvalue, axes out of the items' products lose digits that
# a singular value decomposition, five times as slow, keeps.
_EXACT_ENOUGH = 1e-5


@dataclass(frozen=True)
class PrincipalComponents:
    """Principal components of rows `(items, d)`.

    Eigenvalues descend, `(min(items, d),)`; eigenvectors are `(d, d)` of the scatter, or where
    there are fewer items than columns `(items, items)` of the products between items.
    """

    rows: NDArray[np.float64]
    eigenvalues: NDArray[np.float64]
    vectors: NDArray[np.float64]

    @property
    def cumulative(self) -> NDArray[np.float64]:
        """Share of variance, in per cent, of each component and those before it."""
        sums = np.cumsum(self.eigenvalues)
        return np.asarray(np.minimum(100.0 * sums / sums[-1], 100.0))

    def before(self, variance: float) -> int:
        """Number of components before the one at which the share exceeds `variance`.

        All that have any variance, where the share never does.
        """
        exceeding = np.flatnonzero(self.cumulative > variance)
        if len(exceeding) == 0:
            noise = self.eigenvalues[0] * max(self.rows.shape) * np.finfo(np.float64).eps
            return int((self.eigenvalues > noise).sum())
        if exceeding[0] == 0:
            held = f"the first principal component alone holds {self.cumulative[0]:.4g} %"
            raise InputError(f"{held}, more than variance={variance:g}; give a larger variance")
        return int(exceeding[0])

    def axes(self, count: int) -> NDArray[np.float64]:
        """The first axes, `(d, count)`, orthonormal columns."""
        items, d = self.rows.shape
        if items >= d:
            axes = self.vectors[:, :count]
        elif self.eigenvalues[count - 1] > _EXACT_ENOUGH * self.eigenvalues[0]:
            axes = self.rows.T @ (self.vectors[:, :count] / np.sqrt(self.eigenvalues[:count]))
        else:
            axes = scipy.linalg.svd(self.rows, full_matrices=False, check_finite=False)[2][:count].T
        return np.ascontiguousarray(axes)


def principal_components(rows: NDArray[np.float64]) -> PrincipalComponents:
    """Principal components of the scatter of rows, `rows.T @ rows`, by the smaller product."""
    items, d = rows.shape
    products = rows @ rows.T if items < d else rows.T @ rows
    ascending, vectors = scipy.linalg.eigh(products, check_finite=False)
    # Rounding can leave zeros a little below zero.
    eigenvalues = np.maximum(ascending[::-1], 0.0)
    if eigenvalues[0] <= 0.0:
        raise InputError("no column varies within a condition; give items that vary")
    return PrincipalComponents(rows, eigenvalues, vectors[:, ::-1])
