"""How p-values are held to account."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats


@pytest.fixture
def assert_uniform() -> Callable[..., None]:
    """Checks p-values of true nulls: every tenth of the way equally often, 5 % below 0.05.

    `steps` is the number of values that p can take, or `None` if it is continuous.
    """

    def check(p: ArrayLike, steps: int | None = None) -> None:
        values = np.asarray(p)
        offset = 0.0 if steps is None else 0.5 / steps
        counts = np.histogram(values, bins=np.linspace(0, 1, 11) + offset)[0]
        assert counts.sum() == len(values)
        assert stats.chisquare(counts).pvalue > 1e-3
        below = int((values <= 0.05 + offset).sum())
        assert stats.binomtest(below, len(values), 0.05).pvalue > 1e-3

    return check
