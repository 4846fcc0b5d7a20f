"""L2-penalized logistic regression by Newton's method, along a path of penalties."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv, dpotrs
from scipy.special import expit

Array = NDArray[np.float64]

MAX_STEPS = 200
# From this tolerance on the first steps of a fit take Hessians in single precision.
ROUGH, ROUGH_STEPS = 1e-6, 10
# Rows of less curvature than this part of the mean are left out of these.
FLAT = 0.03
# Relative change of the curvature of the rows up to which a Hessian is used again.
STALE = 0.2


def logistic_path(
    x: Array, y: NDArray[np.bool_], penalties: Sequence[float] | Array, start: Array,
    weights: Array | None = None, tolerance: float = 1e-9,
) -> Iterator[Array]:  # fmt: skip
    """Minimize `½‖w‖² + C Σ log(1 + exp(-s (x·w + b)))` for each `C` in turn.

    Each fit begins where the earlier ones lead. A Hessian is computed anew where the curvatures of
    the rows are no longer a multiple of what they were, or where steps do not become shorter.

    Args:
        x: Rows, `(rows, columns)`; the last column is 1, its weight `b` is not penalized.
        y: Labels, `(rows,)`; `s` is 1 where true, and -1 elsewhere.
        penalties: The `C`s, `(penalties,)`, each the same multiple of the one before; larger ones
            penalize less.
        start: First weights, `(columns,)`.
        weights: Factor of the `C` of each row, `(rows,)`; default 1.
        tolerance: A fit ends where the error that is left, estimated from the last two steps, is
            below this part of the largest weight, or of 1.

    Yields:
        Weights for each penalty, `(columns,)`.

    Source:
        The objective of scikit-learn's `LogisticRegression`; Deuflhard (2011), Newton Methods for
        Nonlinear Problems, sections 2.1 and 3.2 for steps with an earlier Hessian.
    """
    n, k = x.shape
    signs, ridge = np.where(y, -1.0, 1.0), np.append(np.ones(k - 1), 0.0)
    rough = x.astype(np.float32 if tolerance >= ROUGH else np.float64, order="C", copy=False)
    reference, square, scale, buffer = np.zeros(n), 0.0, 0.0, np.empty_like(rough)
    product = factor = np.empty((k, k))
    w, fits, totals = start, list[Array](), list[float]()
    for at, c in enumerate(penalties):
        if at > 1:
            ratio = np.log(c / penalties[at - 1])
            growth = np.log(totals[-1] / totals[-2]) / ratio
            # While all curvatures grow as C, the loss is quadratic and a step with the new C ends
            # near the minimum. Where C only moves rows away, weights are smooth in its logarithm.
            if growth < 0.3 and at > 2:
                w = 3.0 * (w - fits[-2]) + fits[-3]
            elif growth < 0.9:
                w = w + ratio * dpotrs(factor, ridge * w, lower=True)[0]
        step, size, slope, longest, moved = np.zeros(k), 1.0, 0.0, np.inf, np.inf
        for number in range(MAX_STEPS):
            new = w - size * step
            doubt = expit(signs * (x @ new))  # probability of the other label
            pull = (c if weights is None else c * weights) * doubt
            gradient, curvature = ridge * new + (signs * pull) @ x, pull * (1.0 - doubt)
            if float(gradient @ step) < -0.5 * slope:  # far beyond the minimum
                size *= 0.5
                continue
            w, last, moved = new, moved, size * longest
            slow = moved > 0.5 * last
            own, common = float(curvature @ curvature), float(curvature @ reference)
            if slow or _is_stale(own, common, square, scale):
                scale = common / max(square, 1e-300)
                anew = slow or _is_stale(own, common, square, scale)
                for rows in (rough if number < ROUGH_STEPS else x, x):
                    if anew:
                        reference, square, scale = curvature, own, 1.0
                        product = _product(rows, curvature, buffer)
                    hessian = scale * product
                    hessian.flat[:: k + 1] += ridge + 1e-12  # a separable half has none of `b`
                    # The lower factor takes less time than the upper one.
                    factor, step, anew = dposv(hessian.T, gradient, lower=True, overwrite_a=True)
                    if not anew:  # else rounding left it without a factor
                        break
            else:
                step = dpotrs(factor, gradient, lower=True)[0]
            size, slope, longest = 1.0, float(gradient @ step), float(np.abs(step).max())
            rate = longest / max(moved - longest, 1e-300)
            if longest * min(10.0, max(STALE, rate)) <= tolerance * max(1.0, np.abs(w).max()):
                w = w - step
                break
        fits.append(w)
        totals.append(float(curvature.sum()))
        yield w


def _is_stale(own: float, common: float, square: float, scale: float) -> bool:
    """Return whether curvatures are far from a multiple of others, by their inner products."""
    return own - 2.0 * scale * common + scale**2 * square > STALE**2 * own


def _product(x: NDArray[Any], curvature: Array, buffer: NDArray[Any]) -> Array:
    """`xᵀ diag(curvature) x`; in single precision roughly, and safe to factorize."""
    rough = x.dtype == np.float32
    used = np.flatnonzero(curvature > FLAT * rough * curvature.mean())
    out = buffer[: len(used)] if x.dtype == buffer.dtype else None
    scaled = np.take(x, used, axis=0, out=out, mode="clip")
    scaled *= np.sqrt(curvature[used, None]).astype(x.dtype)
    product: Array = (scaled.T @ scaled).astype(np.float64)
    product.flat[:: x.shape[1] + 1] *= 1.0 + (1e-6 if rough else 1e-13)
    return product
