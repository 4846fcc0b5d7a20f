"""L2-penalized logistic regression by Newton's method, along a path of penalties."""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

from palinka.analyses.stats.compiled import compiled

Array = NDArray[np.float64]

MAX_STEPS = 200
# Columns from which a BLAS product pays, where rows are not sparse.
LARGE = 24


def logistic_path(
    x: Array, y: NDArray[np.bool_], penalties: Array, start: Array, weights: Array | None = None
) -> Array:
    """Minimize `½‖w‖² + C Σ log(1 + exp(-s (x·w + b)))` for each `C` in turn.

    Each fit begins at the previous solution. It ends where a full step changes no weight by more
    than 1e-8 of the largest, or of 1; the error is then about the square of that. Zeros in `x`
    are skipped.

    Args:
        x: Rows, `(rows, columns)`; the last column is 1, its weight `b` is not penalized.
        y: Labels, `(rows,)`; `s` is 1 where true, and -1 elsewhere.
        penalties: The `C`s, `(penalties,)`; larger ones penalize less.
        start: First weights, `(columns,)`.
        weights: Factor of the `C` of each row, `(rows,)`; default 1.

    Returns:
        Weights for each penalty, `(penalties, columns)`.

    Source:
        The objective of scikit-learn's `LogisticRegression`; Nocedal & Wright (2006), chapter 3,
        for the line search.
    """
    n, k = x.shape
    rows, column = np.nonzero(x)
    first = np.searchsorted(rows, np.arange(n + 1))
    by_product = k > LARGE and len(rows) > x.size // 4
    values, signs = x[rows, column], np.where(y, 1.0, -1.0)
    ridge, found, w = np.append(np.ones(k - 1), 0.0), np.empty((len(penalties), k)), start
    pull, curvature, gradient, hessian = np.empty(n), np.empty(n), np.empty(k), np.empty((k, k))
    for at, c in enumerate(np.outer(penalties, np.ones(n) if weights is None else weights)):
        step, size, slope, least = np.zeros(k), 1.0, 0.0, np.inf
        for iteration in range(MAX_STEPS):
            new = w - size * step
            margin = x @ new if by_product else _margins(values, first, column, new)
            value = 0.5 * float(ridge @ np.square(new))
            value += _losses(margin, signs, c, pull, curvature)
            # Of values that differ by rounding alone, the new one is taken.
            if value > least - 1e-4 * size * slope + 1e-13 * abs(least) and size > 1e-10:
                size *= 0.5
                continue
            moved, w, least = size * np.abs(step).max(), new, value
            if iteration and size == 1.0 and moved <= 1e-8 * max(1.0, np.abs(w).max()):
                break
            if by_product:
                scaled = x * np.sqrt(curvature)[:, None]
                gradient, hessian = pull @ x, scaled.T @ scaled
            else:
                _derivatives(values, first, column, pull, curvature, gradient, hessian)
            hessian.flat[:: k + 1] += ridge + 1e-12  # a separable half has no curvature of `b`
            gradient += ridge * w
            step, size = dposv(hessian, gradient)[1], 1.0
            slope = float(gradient @ step)
        found[at] = w
    return found


@compiled
def _margins(values: Array, first: NDArray[np.int64], column: NDArray[np.int64], w: Array) -> Array:
    found = np.zeros(len(first) - 1)
    for i in range(len(found)):
        for at in range(first[i], first[i + 1]):
            found[i] += values[at] * w[column[at]]
    return found


@compiled
def _losses(margin: Array, signs: Array, c: Array, pull: Array, curvature: Array) -> float:
    """Sum of the log-losses times `c`, `(rows,)`; also their derivatives by the margin."""
    total = 0.0
    for i in range(len(margin)):
        m = signs[i] * margin[i]
        e = np.exp(-abs(m))
        total += c[i] * (np.log1p(e) + max(-m, 0.0))
        pull[i] = -c[i] * signs[i] * (e if m > 0 else 1.0) / (1.0 + e)
        curvature[i] = c[i] * e / ((1.0 + e) * (1.0 + e))
    return total


@compiled
def _derivatives(
    values: Array, first: NDArray[np.int64], column: NDArray[np.int64], pull: Array,
    curvature: Array, gradient: Array, hessian: Array,
) -> None:  # fmt: skip
    gradient[:], hessian[:, :] = 0.0, 0.0
    for i in range(len(first) - 1):
        for at in range(first[i], first[i + 1]):
            gradient[column[at]] += pull[i] * values[at]
            weight = curvature[i] * values[at]
            for other in range(first[i], at + 1):
                hessian[column[other], column[at]] += weight * values[other]
