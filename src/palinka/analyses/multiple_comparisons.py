"""Which of many tests are significant, at a bounded error over all of them."""

import numpy as np
from numpy.typing import NDArray


def bonferroni(p: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
    """Hold the chance of any false positive to `alpha`: `p < alpha / tests`.

    Args:
        p: One p-value for each test.
        alpha: The family-wise error rate.

    Returns:
        Which tests are significant.

    Source:
        Bonferroni (1936); Dunn (1961).
    """
    return np.asarray(p < alpha / len(p))


def holm(p: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
    """Hold the chance of any false positive to `alpha`, stepping down from the smallest p.

    Never less powerful than Bonferroni's correction, under any dependence of the tests.

    Args:
        p: One p-value for each test.
        alpha: The family-wise error rate.

    Returns:
        Which tests are significant.

    Source:
        Holm (1979).
    """
    order = np.argsort(p, kind="stable")
    passes = p[order] <= alpha / np.arange(len(p), 0, -1)
    significant = np.empty(len(p), dtype=bool)
    significant[order] = np.logical_and.accumulate(passes)
    return significant


def benjamini_hochberg(p: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
    """Hold the expected share of false positives among the positives to `alpha`.

    Valid where the tests are independent or positively dependent.

    Args:
        p: One p-value for each test.
        alpha: The false discovery rate.

    Returns:
        Which tests are significant.

    Source:
        Benjamini & Hochberg (1995).
    """
    ascending = np.sort(p)
    passes = np.flatnonzero(ascending <= alpha * np.arange(1, len(p) + 1) / len(p))
    if passes.size == 0:
        return np.zeros(len(p), dtype=bool)
    return np.asarray(p <= ascending[passes[-1]])
