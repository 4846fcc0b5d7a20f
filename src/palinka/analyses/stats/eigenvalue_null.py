"""Permutation null and held-out check of generalized eigenvalues."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from palinka.analyses.stats import covariance
from palinka.analyses.stats.compiled import threads
from palinka.analyses.stats.covariance import Shrinkage, shrinkage_intensity, shrunk
from palinka.analyses.stats.permutation import chunks
from palinka.errors import InputError, compiled_with, progress

Array = NDArray[np.float64]

# Number of trial points at a time at either end of the spectrum.
_POINTS = 8


@compiled_with(fastmath={"reassoc", "contract"})
def _tridiagonalize(m: Array, diagonal: Array, beside: Array) -> None:
    """Householder's reduction of the lower triangle of `m`, last row first; overwrites `m`.

    Each pass applies a reflection and multiplies by the next one: one reading per reflection.
    """
    r = m.shape[0]
    v, w = np.zeros(r), np.zeros(r)
    following, product = np.zeros(r), np.zeros(r)
    for k in range(r - 1, 0, -1):
        # Row k is final once the reflection before has been applied to it.
        row = m[k]
        for j in range(k + 1):
            row[j] -= v[k] * w[j] + w[k] * v[j]
        diagonal[k] = row[k]
        norm = 0.0
        for j in range(k):
            following[j] = row[j]
            norm += row[j] * row[j]
        norm = np.sqrt(norm)
        pivot = following[k - 1]
        beside[k] = -norm if pivot > 0.0 else norm
        following[k - 1] = pivot - beside[k]
        half = norm * (norm + abs(pivot))  # half the squared length of the reflection's vector
        scale = 1.0 / half if half > 0.0 else 0.0
        for j in range(k):
            product[j] = 0.0
        for i in range(0, k - 1, 2):  # rows in pairs, which share what is read besides
            row, next_row = m[i], m[i + 1]
            v_0, w_0, f_0 = v[i], w[i], following[i]
            v_1, w_1, f_1 = v[i + 1], w[i + 1], following[i + 1]
            row[i] -= 2.0 * v_0 * w_0
            next_row[i] -= v_1 * w_0 + w_1 * v_0
            next_row[i + 1] -= 2.0 * v_1 * w_1
            total_0 = row[i] * f_0 + next_row[i] * f_1
            total_1 = next_row[i] * f_0 + next_row[i + 1] * f_1
            for j in range(i):
                entry_0 = row[j] - v_0 * w[j] - w_0 * v[j]
                entry_1 = next_row[j] - v_1 * w[j] - w_1 * v[j]
                row[j] = entry_0
                next_row[j] = entry_1
                total_0 += entry_0 * following[j]
                total_1 += entry_1 * following[j]
                product[j] += entry_0 * f_0 + entry_1 * f_1
            product[i] += total_0
            product[i + 1] += total_1
        if k % 2:
            i = k - 1
            row = m[i]
            row[i] -= 2.0 * v[i] * w[i]
            total_0 = row[i] * following[i]
            for j in range(i):
                row[j] -= v[i] * w[j] + w[i] * v[j]
                total_0 += row[j] * following[j]
                product[j] += row[j] * following[i]
            product[i] += total_0
        overlap = 0.0
        for j in range(k):
            overlap += product[j] * following[j]
        overlap *= 0.5 * scale * scale
        for j in range(k):
            v[j] = following[j]
            w[j] = scale * product[j] - overlap * following[j]
    diagonal[0] = m[0, 0] - 2.0 * v[0] * w[0]


@compiled_with()
def _extremes(diagonal: Array, beside: Array) -> tuple[float, float]:
    """Smallest and largest eigenvalue, within [0, 1], of a tridiagonal matrix: Sturm counts."""
    r = len(diagonal)
    low, high = np.zeros(2), np.ones(2)
    points, pivots = np.empty(2 * _POINTS), np.empty(2 * _POINTS)
    below = np.empty(2 * _POINTS, np.int64)
    for _ in range(18):  # 9 to the power of -18 is less than float64 resolves
        for end in range(2):
            step = (high[end] - low[end]) / (_POINTS + 1)
            for p in range(_POINTS):
                points[end * _POINTS + p] = low[end] + (p + 1) * step
        for p in range(2 * _POINTS):
            pivots[p] = diagonal[0] - points[p]
            below[p] = pivots[p] < 0.0
        for i in range(1, r):
            square = beside[i] * beside[i]
            for p in range(2 * _POINTS):
                pivot = pivots[p]
                pivot = pivot if abs(pivot) > 1e-300 else 1e-300
                pivot = diagonal[i] - points[p] - square / pivot
                pivots[p] = pivot
                below[p] += pivot < 0.0
        for end in range(2):
            needed = 1 if end == 0 else r
            bottom, top = low[end], high[end]
            for p in range(end * _POINTS, (end + 1) * _POINTS):
                if below[p] >= needed:
                    top = points[p]
                    break
                bottom = points[p]
            low[end], high[end] = bottom, top
    return 0.5 * (low[0] + high[0]), 0.5 * (low[1] + high[1])


@compiled_with(fastmath={"reassoc", "contract"})
def _add_scatter(m: Array, z: Array) -> None:
    """Add the lower triangle of `z.T @ z` to `m`, a row at a time and eight items at once."""
    items = len(z)
    whole = items - items % 8
    for i in range(m.shape[0]):
        row = m[i]
        for k in range(0, whole, 8):
            z_0, z_1, z_2, z_3 = z[k], z[k + 1], z[k + 2], z[k + 3]
            z_4, z_5, z_6, z_7 = z[k + 4], z[k + 5], z[k + 6], z[k + 7]
            c_0, c_1, c_2, c_3 = z_0[i], z_1[i], z_2[i], z_3[i]
            c_4, c_5, c_6, c_7 = z_4[i], z_5[i], z_6[i], z_7[i]
            for j in range(i + 1):
                row[j] += c_0 * z_0[j] + c_1 * z_1[j] + c_2 * z_2[j] + c_3 * z_3[j]
                row[j] += c_4 * z_4[j] + c_5 * z_5[j] + c_6 * z_6[j] + c_7 * z_7[j]
        for k in range(whole, items):
            z_0 = z[k]
            c_0 = z_0[i]
            for j in range(i + 1):
                row[j] += c_0 * z_0[j]


# Rows come in the basis of their own principal components, where their scatter `T` is diagonal. For
# every labeling the scatters of the two conditions add up to `T`. So with
#
#     P = scatter_A + g_A I,    Q = scatter_B + g_B I,    P + Q = T + (g_A + g_B) I
#
# an inverse square root of `P + Q` costs nothing, and the pencil `(P, Q)`, whose eigenvalues are
# wanted, turns into one symmetric matrix `M` similar to `(P + Q)^-1 P`: an eigenvalue `theta` of
# `M` belongs to the eigenvalue `theta / (1 - theta)` of the pencil. The largest gives condition A
# over B, the smallest B over A, so that one tridiagonalization serves both directions.
@compiled_with(error_model="numpy", fastmath={"reassoc", "contract"})
def permuted_eigenvalues(rows: Array, in_a: NDArray[np.bool_], shrinkage: float) -> Array:
    """Largest eigenvalues of both shrunk covariances against each other, `(labelings, 2)`.

    `rows`, `(rows, r)`, are C-contiguous, of mean 0 by assumption, with a diagonal scatter; `in_a`
    is the mask of those labeled A, `(labelings, rows)`. A over B comes first, then B over A.
    """
    n, r = rows.shape
    largest = np.empty((len(in_a), 2))
    spread = np.zeros(r)
    lengths = np.zeros(n)
    for i in range(n):
        for j in range(r):
            spread[j] += rows[i, j] ** 2
            lengths[i] += rows[i, j] ** 2
    ridge = shrinkage / (1.0 - shrinkage) / r
    inverse = 1.0 / np.sqrt(spread + ridge * spread.sum())
    m, z = np.empty((r, r)), np.empty((n, r))
    diagonal, beside = np.empty(r), np.zeros(r)
    for permutation in range(len(in_a)):
        n_a, trace_a = 0, 0.0
        for i in range(n):
            if in_a[permutation, i]:
                trace_a += lengths[i]
                for j in range(r):
                    z[n_a, j] = rows[i, j] * inverse[j]
                n_a += 1
        m[:] = 0.0
        for j in range(r):
            m[j, j] = inverse[j] ** 2 * ridge * trace_a
        _add_scatter(m, z[:n_a])
        _tridiagonalize(m, diagonal, beside)
        smallest, greatest = _extremes(diagonal, beside)
        degrees = (n - n_a) / n_a
        largest[permutation, 0] = degrees * greatest / (1.0 - greatest)
        largest[permutation, 1] = (1.0 - smallest) / smallest / degrees
    return largest


HALVES = 50
# Smaller ratios of variances are rounding.
_NO_VARIANCE = np.finfo(np.float64).eps


def leading_filter(more: Array, less: Array, shrinkage: Shrinkage) -> Array:
    """Direction of most variance in `more` per shrunk variance in `less`, `(r,)`.

    Its length and sign are arbitrary. `more` and `less` are `(items, r)`; the problem is solved
    among the items of `more` where they are fewer than the dimensions.
    """
    centered = more - more.mean(axis=0)
    if len(centered) > centered.shape[1]:
        centered = np.linalg.qr(centered, mode="r")
    remaining = less - less.mean(axis=0)
    scatter = remaining.T @ remaining / (len(less) - 1)
    regular = shrunk(scatter, shrinkage_intensity(remaining, shrinkage))
    factor = scipy.linalg.cho_factor(regular, check_finite=False)
    solved = scipy.linalg.cho_solve(factor, centered.T, check_finite=False)
    last = len(centered) - 1
    _, top = scipy.linalg.eigh(centered @ solved, subset_by_index=(last, last), check_finite=False)
    direction: Array = solved @ top[:, 0]
    return direction


def heldout_ratio(a: Array, b: Array, shrinkage: Shrinkage, seed: int) -> tuple[Array, Array]:
    """Variance ratios of filters on halves of the items that they were not fitted on.

    Item i of A and item i of B, `(items, r)`, fall into the same half where both have the same
    number of items, so that matched pairs stay together. Filters are fitted with shrunk
    denominators; the ratios are of plain variances. Their geometric mean is 1 where nothing carries
    over and the tested halves are of the same size; with `m` and `k` normal items it is
    `exp(1 / k - 1 / m)` to first order. The arithmetic mean would be larger: `d / (d - 2)` with `d`
    degrees of freedom in the denominator.

    Returns:
        Geometric mean, 2.5 and 97.5 percentile, `(3,)`, of the variance in A over that in B for
        the filter of A over B, and the reverse. A `LinAlgError` if a tested half does not vary.
    """
    if min(len(a), len(b)) < 4:
        raise np.linalg.LinAlgError("a half of fewer than four items has no variance")
    draws = np.random.default_rng(seed), np.random.default_rng(seed)
    ratios = np.empty((HALVES, 2))
    for half in range(HALVES):
        # The larger half to fit, the other to test.
        (fit_a, test_a), (fit_b, test_b) = (
            np.split(x[draw.permutation(len(x))], [(len(x) + 1) // 2])
            for x, draw in zip((a, b), draws, strict=True)
        )
        directions = (fit_a, fit_b, test_a, test_b), (fit_b, fit_a, test_b, test_a)
        for direction, (more, less, top, bottom) in enumerate(directions):
            filter_ = leading_filter(more, less, shrinkage)
            numerator, denominator = (np.var(part @ filter_, ddof=1) for part in (top, bottom))
            if min(numerator, denominator) <= _NO_VARIANCE * max(numerator, denominator):
                raise np.linalg.LinAlgError("half of the items do not vary")
            ratios[half, direction] = numerator / denominator
    low, high = np.percentile(ratios, (2.5, 97.5), axis=0)
    summary = np.stack((np.exp(np.log(ratios).mean(axis=0)), low, high))
    return summary[:, 0], summary[:, 1]


# Labelings at a time; bounds memory.
_CHUNK = 32


def contrast_scores(a: Array, b: Array, variance: float) -> Array:
    """Contrasts of both conditions on the principal components of all centered items.

    `(n_a - 1 + n_b - 1, r)`, those of A first. The `n` items of a condition, centered on its mean,
    are correlated and share `n - 1` degrees of freedom. Their Householder contrasts
    `x_i - x_n / (sqrt(n) + 1)`, `i < n`, have their scatter; they are uncorrelated and of equal
    variance, and therefore exchangeable where items are normal. Contrast i of A and of B are made
    of item i and the last item alike, so that matched pairs remain matched. The components before
    the cumulative share `variance`, in per cent, are kept.

    Source:
        Huh and Jhun (2001), "Random permutation testing in multiple linear regression": a
        permutation of residuals' uncorrelated contrasts.
    """
    centered = (x - x.mean(axis=0) for x in (a, b))
    rows = np.concatenate([x[:-1] - x[-1] / (np.sqrt(len(x)) + 1.0) for x in centered])
    components = covariance.principal_components(rows / np.sqrt(len(rows)))
    scores: Array = rows @ components.axes(components.before(variance))
    return scores


def largest_eigenvalues(rows: Array, in_a: NDArray[np.bool_], shrinkage: Shrinkage) -> Array:
    """Plain form of `permuted_eigenvalues`, for any shrinkage."""
    largest = np.empty((len(in_a), 2))
    for index, labels in enumerate(in_a):
        a, b = (
            shrunk(part.T @ part / len(part), shrinkage_intensity(part, shrinkage))
            for part in (rows[labels], rows[~labels])
        )
        eigenvalues = scipy.linalg.eigh(a, b, eigvals_only=True, check_finite=False)
        largest[index] = eigenvalues[-1], 1.0 / eigenvalues[0]
    return largest


def permutation_null(
    a: Array, b: Array, variance: float, shrinkage: Shrinkage, permutations: int, pairs: bool,
    seed: int,
) -> tuple[Array, Array]:  # fmt: skip
    """Largest eigenvalues under the true labels and under exchanged ones.

    The labels of `contrast_scores` are exchanged, since centered items are not exchangeable: within
    pairs (contrast i of A with contrast i of B, each pair swapped with probability 1/2), or over
    all. The observed values equal those of the centered items.

    Returns:
        Observed `(2,)` and null `(permutations, 2)`: A over B, B over A.
    """
    scores = contrast_scores(a, b, variance)
    return shuffled_eigenvalues(scores, len(a) - 1, shrinkage, permutations, pairs, seed)


def shuffled_eigenvalues(
    scores: Array, n_a: int, shrinkage: Shrinkage, permutations: int, pairs: bool, seed: int
) -> tuple[Array, Array]:
    """`permutation_null` of given `contrast_scores`, `n_a` of them of condition A."""
    fewest = min(n_a, len(scores) - n_a)
    if shrinkage == 0 and scores.shape[1] > fewest:
        needs = f"{scores.shape[1]} principal components need more than {fewest + 1} items"
        raise InputError(f"{needs} in each condition; give shrinkage above 0 or a smaller variance")
    labels = np.arange(len(scores)) < n_a
    rng = np.random.default_rng(seed)
    if pairs:
        kept = rng.random((permutations, n_a)) < 0.5
        shuffled = np.concatenate((kept, ~kept), axis=1)
    else:
        shuffled = rng.permuted(np.tile(labels, (permutations, 1)), axis=1)
    # The true labeling is one of the batch, so that a draw that repeats it is an exact tie.
    in_a = np.concatenate((labels[None], shuffled))
    # Estimators need the plain form, in one thread; compiled code releases the interpreter.
    if isinstance(shrinkage, str):
        compute, executor = partial(largest_eigenvalues, shrinkage=shrinkage), ThreadPoolExecutor(1)
    else:
        compute = partial(permuted_eigenvalues, shrinkage=float(shrinkage))
        executor = ThreadPoolExecutor(threads())
    parts = []
    try:
        with progress("Permuting labels", len(in_a), "labelings") as bar:
            labelings = (in_a[chunk] for chunk in chunks(len(in_a), _CHUNK))
            for part in executor.map(partial(compute, scores), labelings):
                parts.append(part)
                bar.update(len(part))
    finally:
        executor.shutdown(cancel_futures=True)
    largest = np.concatenate(parts)
    return largest[0], largest[1:]
