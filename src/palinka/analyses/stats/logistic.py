"""L2-penalized logistic regression by Newton's method, along a path of penalties."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv, dpotrs
from scipy.sparse import csr_array

from palinka.analyses.stats.compiled import compiled

Array = NDArray[np.float64]

MAX_STEPS = 200
# Columns from which a BLAS product pays, where rows are not sparse.
LARGE = 4
# Relative change of the curvature of the rows up to which a Hessian is used again.
STALE = 0.2


def logistic_path(
    x: Array, y: NDArray[np.bool_], penalties: Sequence[float] | Array, start: Array,
    weights: Array | None = None, tolerance: float = 1e-8,
) -> Iterator[Array]:  # fmt: skip
    """Minimize `½‖w‖² + C Σ log(1 + exp(-s (x·w + b)))` for each `C` in turn.

    Each fit begins at the previous solution, moved along its derivative by `log C`. The Hessian is
    computed anew where the curvatures of the rows are no longer a multiple of what they were.

    Args:
        x: Rows, `(rows, columns)`; the last column is 1, its weight `b` is not penalized.
        y: Labels, `(rows,)`; `s` is 1 where true, and -1 elsewhere.
        penalties: The `C`s, `(penalties,)`; larger ones penalize less.
        start: First weights, `(columns,)`.
        weights: Factor of the `C` of each row, `(rows,)`; default 1.
        tolerance: A fit ends where a full step changes no weight by more than this part of the
            largest, or of 1.

    Yields:
        Weights for each penalty, `(columns,)`.

    Source:
        The objective of scikit-learn's `LogisticRegression`; Nocedal & Wright (2006), chapter 3,
        for the line search.
    """
    n, k = x.shape
    sparse = csr_array(x) if k <= LARGE or np.count_nonzero(x) <= x.size // 4 else None
    rows: Any = x if sparse is None else sparse
    columns = rows.T
    signs, ridge, w = np.where(y, 1.0, -1.0), np.append(np.ones(k - 1), 0.0), start
    pull, curvature, reference, scale = np.empty(n), np.empty(n), np.zeros(n), 0.0
    product = factor = np.empty((k, k))
    for at, c in enumerate(penalties):
        of_row = c * (np.ones(n) if weights is None else weights)
        if at:
            w = w + np.log(c / penalties[at - 1]) * dpotrs(factor, ridge * w)[0]
        step, size, slope, least, last = np.zeros(k), 1.0, 0.0, np.inf, np.inf
        for iteration in range(MAX_STEPS):
            new = w - size * step
            value = 0.5 * float(ridge @ np.square(new))
            value += _losses(rows @ new, signs, of_row, pull, curvature)
            # Of values that differ by rounding alone, the new one is taken.
            if value > least - 1e-4 * size * slope + 1e-13 * abs(least) and size > 1e-10:
                size *= 0.5
                continue
            moved, w, least = size * np.abs(step).max(), new, value
            if iteration and size == 1.0 and moved <= tolerance * max(1.0, np.abs(w).max()):
                break
            gradient, slow = columns @ pull + ridge * w, moved > 0.5 * last
            if slow or _is_stale(curvature, scale * reference):
                scale = float(curvature @ reference) / max(float(reference @ reference), 1e-300)
                if slow or _is_stale(curvature, scale * reference):
                    reference, scale = curvature.copy(), 1.0
                    product = _product(x, sparse, reference)
                hessian = scale * product
                hessian.flat[:: k + 1] += ridge + 1e-12  # a separable half has no curvature of `b`
                factor, step, _ = dposv(hessian, gradient)
            else:
                step = dpotrs(factor, gradient)[0]
            size, slope, last = 1.0, float(gradient @ step), moved if iteration else np.inf
        yield w


def _is_stale(curvature: Array, used: Array) -> bool:
    change = curvature - used
    return float(change @ change) > STALE**2 * float(curvature @ curvature)


def _product(x: Array, sparse: csr_array | None, curvature: Array) -> Array:
    """The upper triangle of `xᵀ diag(curvature) x`, `(columns, columns)`."""
    if sparse is None:
        scaled = x * np.sqrt(curvature)[:, None]
        return np.asarray(scaled.T @ scaled)
    found = np.zeros((x.shape[1], x.shape[1]))
    _add_outer(sparse.data, sparse.indptr, sparse.indices, curvature, found)
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
def _add_outer(
    values: Array, first: NDArray[np.int32], column: NDArray[np.int32], curvature: Array,
    found: Array,
) -> None:  # fmt: skip
    for i in range(len(first) - 1):
        for at in range(first[i], first[i + 1]):
            weight = curvature[i] * values[at]
            for other in range(first[i], at + 1):
                found[column[other], column[at]] += weight * values[other]
