"""Running sums over rows, from which centring and scaling follow."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RowStatistics:
    """Sums over rows in float64; sums of several shards add up to those of the whole.

    Attributes:
        rows: How many rows went in.
        sum: The sum of the rows, `(width,)`.
        sum_of_norms: The sum of the rows' Euclidean norms.
        sum_of_squared_norms: The sum of their squares.
    """

    rows: int
    sum: NDArray[np.float64]
    sum_of_norms: float
    sum_of_squared_norms: float

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> "RowStatistics":
        """The sums over `rows`, `(rows, width)`."""
        squared_norms = np.einsum("ij,ij->i", rows, rows)
        return cls(
            rows=len(rows),
            sum=rows.sum(axis=0),
            sum_of_norms=float(np.sqrt(squared_norms).sum()),
            sum_of_squared_norms=float(squared_norms.sum()),
        )

    @classmethod
    def merged(cls, parts: Iterable["RowStatistics"], width: int) -> "RowStatistics":
        """The sums over all parts, added in the order given."""
        rows, total, norms, squared_norms = 0, np.zeros(width), 0.0, 0.0
        for part in parts:
            rows += part.rows
            total = total + part.sum
            norms += part.sum_of_norms
            squared_norms += part.sum_of_squared_norms
        return cls(rows, total, norms, squared_norms)

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean row, `(width,)`."""
        return self.sum / self.rows

    @property
    def mean_norm(self) -> float:
        """The mean Euclidean norm of a row, not centred."""
        return self.sum_of_norms / self.rows

    @property
    def mean_squared_norm(self) -> float:
        """The mean squared norm of a row, not centred."""
        return self.sum_of_squared_norms / self.rows

    @property
    def total_variance(self) -> float:
        """The mean squared distance of a row from the mean row."""
        return max(0.0, self.mean_squared_norm - float(self.mean @ self.mean))
