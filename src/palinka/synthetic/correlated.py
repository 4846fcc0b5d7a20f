"""Features that are active together more often, or less, than by chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from palinka.errors import InputError
from palinka.synthetic.data import SyntheticData


@dataclass(frozen=True, eq=False)
class CorrelatedData(SyntheticData):
    """Data in which a given structure of correlation makes features co-occur.

    Behind every row stands a vector of normal variables with the given correlations, and a
    feature is active where its own is among the highest. Each is active as often as it would be
    without them.

    Attributes:
        correlation: Of the normal variables, a symmetric `(features, features)` matrix without
            negative eigenvalues and with ones on the diagonal; see `grouped_correlation`.

    Raises:
        InputError: If it is no such matrix, or as `SyntheticData` does.

    Source:
        Emrich & Piedmonte (1991), A method for generating high-dimensional multivariate binary
        variates.
    """

    correlation: Sequence[Sequence[float]] | Tensor = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self._matrix
        if (
            given.shape != (self.features, self.features)
            or not torch.allclose(given, given.T)
            or not torch.allclose(given.diagonal(), torch.ones(self.features, dtype=given.dtype))
        ):
            raise InputError(
                f"correlation must be a symmetric matrix of {self.features} by {self.features} with"
                f" ones on the diagonal, got the shape {tuple(given.shape)}"
            )
        lowest = float(torch.linalg.eigvalsh(given)[0])
        if lowest < -1e-6:
            raise InputError(
                f"no variables have this correlation: its lowest eigenvalue is {lowest:.3g}, and"
                " none may be negative; make the correlations weaker"
            )

    @property
    def _matrix(self) -> Tensor:
        return torch.as_tensor(self.correlation, dtype=torch.float64)

    @cached_property
    def _root(self) -> Tensor:
        """What independent normal variables are multiplied with, `(features, features)`."""
        values, vectors = torch.linalg.eigh(self._matrix)
        root: Tensor = vectors * values.clamp(min=0).sqrt()
        return root.T.float()

    def _active(self, rows: int, generator: Generator) -> Tensor:
        normal = torch.randn(rows, self.features, generator=generator) @ self._root
        active: Tensor = normal < torch.special.ndtri(torch.tensor(self.active / self.features))
        return active


def grouped_correlation(features: int, group_size: int, correlation: float) -> Tensor:
    """The same correlation between any two features of a group, none between groups.

    Args:
        features: How many there are.
        group_size: How many consecutive features make up a group; the last may have fewer.
        correlation: From 0 to 1.

    Returns:
        `(features, features)`, float64.
    """
    group = torch.arange(features) // group_size
    together = (group[:, None] == group).double()
    return correlation * together + (1.0 - correlation) * torch.eye(features, dtype=torch.float64)
