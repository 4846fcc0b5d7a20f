"""Principal components of data that may have many more columns than rows."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from palinka.errors import InputError


@dataclass(frozen=True)
class PrincipalComponents:
    """Eigenvalues in descending order, and the axes that belong to them.

    Attributes:
        eigenvalues: `(min(items, d),)`; the covariance has no others but zero.
        axes: `(d, min(items, d))`, orthonormal columns.
    """

    eigenvalues: NDArray[np.float64]
    axes: NDArray[np.float64]

    @property
    def cumulative(self) -> NDArray[np.float64]:
        """Share of variance, in per cent, of each component and those before it."""
        sums = np.cumsum(self.eigenvalues)
        shares: NDArray[np.float64] = np.minimum(100.0 * sums / sums[-1], 100.0)
        return shares

    def before(self, variance: float) -> int:
        """How many components come before the one at which the share exceeds `variance`.

        All that have any variance where the share never does.

        Raises:
            InputError: If the first component already exceeds it.
        """
        exceeding = np.flatnonzero(self.cumulative > variance)
        if len(exceeding) == 0:
            longest = max(self.axes.shape)
            noise = self.eigenvalues[0] * longest * np.finfo(np.float64).eps
            return int((self.eigenvalues > noise).sum())
        if exceeding[0] == 0:
            raise InputError(
                f"the first principal component alone holds {self.cumulative[0]:.4g} % of the "
                f"variance, so that none comes before variance={variance:g}; give a larger variance"
            )
        return int(exceeding[0])


def principal_components(rows: NDArray[np.float64]) -> PrincipalComponents:
    """Principal components of the covariance `rows.T @ rows`, formed only if it is the smaller.

    Args:
        rows: `(items, d)`, centered and scaled by the caller.

    Raises:
        InputError: If nothing varies.
    """
    items, d = rows.shape
    if items < d:
        _, singular, axes = scipy.linalg.svd(rows, full_matrices=False, check_finite=False)
        eigenvalues, axes = singular**2, axes.T
    else:
        ascending, axes = scipy.linalg.eigh(rows.T @ rows, check_finite=False)
        # Rounding can leave zeros a little below zero.
        eigenvalues, axes = np.maximum(ascending[::-1], 0.0), axes[:, ::-1]
    if eigenvalues[0] <= 0.0:
        raise InputError("no column varies within a condition; there is no variance to decompose")
    return PrincipalComponents(eigenvalues, axes)
