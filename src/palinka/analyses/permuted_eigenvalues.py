"""The largest generalized eigenvalues of many labelings of the same items, in compiled code.

Items come in the basis of their own principal components, where their scatter about the grand
mean is diagonal: `T = diag(t)`. For every labeling the scatters within the two conditions add up
to `T` less one outer product, that of the difference of the two means. So with

    P = scatter_A + g_A I,    Q = scatter_B + g_B I,    P + Q = diag(t + g_A + g_B) - v v'

an inverse square root of `P + Q` costs nothing, and the pencil `(P, Q)`, whose eigenvalues are
wanted, turns into one symmetric matrix `M` similar to `(P + Q)^-1 P`: an eigenvalue `theta` of
`M` belongs to the eigenvalue `theta / (1 - theta)` of the pencil. The largest gives condition A
over B, the smallest B over A, so that one tridiagonalization serves both directions.
"""

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.compiled import compiled_with

# A batch of trial points this long is tried at once at either end of the spectrum.
_POINTS = 8


@compiled_with(fastmath={"reassoc", "contract"})
def _tridiagonalize(m, diagonal, beside):  # type: ignore[no-untyped-def]
    """Householder's reduction of the lower triangle of `m`, last row first; `m` is used up.

    Each pass over what is left both applies a reflection and multiplies by the next one, so that
    the matrix is read once per reflection and not twice.
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
def _extremes(diagonal, beside):  # type: ignore[no-untyped-def]
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
def _add_scatter(m, z):  # type: ignore[no-untyped-def]
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


@compiled_with(error_model="numpy", fastmath={"reassoc", "contract"})
def _largest_eigenvalues(scores, in_a, shrinkage):  # type: ignore[no-untyped-def]
    n, r = scores.shape
    largest = np.empty((len(in_a), 2))
    spread = np.zeros(r)
    lengths = np.zeros(n)
    for i in range(n):
        for j in range(r):
            spread[j] += scores[i, j] ** 2
            lengths[i] += scores[i, j] ** 2
    ridge = shrinkage / (1.0 - shrinkage) / r
    m, z = np.empty((r, r)), np.empty((n, r))
    mean, u, s = np.empty(r), np.empty(r), np.empty(r)
    inverse, diagonal, beside = np.empty(r), np.empty(r), np.zeros(r)
    for permutation in range(len(in_a)):
        mean[:] = 0.0
        n_a, trace_a = 0, 0.0
        for i in range(n):
            if in_a[permutation, i]:
                n_a += 1
                trace_a += lengths[i]
                for j in range(r):
                    mean[j] += scores[i, j]
        n_b = n - n_a
        mean_length = 0.0
        for j in range(r):
            mean[j] /= n_a
            mean_length += mean[j] ** 2
        between = n_a * n / n_b
        trace_a -= n_a * mean_length
        ridge_a = ridge * trace_a
        ridge_both = ridge * (spread.sum() - between * mean_length)

        u_length = 0.0
        for j in range(r):
            inverse[j] = 1.0 / np.sqrt(spread[j] + ridge_both)
            u[j] = mean[j] * inverse[j] * np.sqrt(between)
            u_length += u[j] ** 2
            s[j] = inverse[j] ** 2 * ridge_a * u[j]
        rows = 0
        for i in range(n):
            if in_a[permutation, i]:
                along = 0.0
                for j in range(r):
                    z[rows, j] = scores[i, j] * inverse[j]
                    along += z[rows, j] * u[j]
                for j in range(r):
                    s[j] += z[rows, j] * along
                rows += 1
        # (I - u u')^(-1/2) = I + k u u'; both sides of it make a symmetric update of rank two.
        root = np.sqrt(max(1.0 - u_length, 1e-300))
        k = 1.0 / (root * (1.0 + root))
        own = n_a / between
        s_along = 0.0
        for j in range(r):
            s[j] -= own * u_length * u[j]
            s_along += s[j] * u[j]
        for j in range(r):
            s[j] = k * s[j] + 0.5 * (k * k * s_along - own) * u[j]

        for i in range(r):
            row = m[i]
            for j in range(i + 1):
                row[j] = u[i] * s[j] + s[i] * u[j]
            row[i] += inverse[i] ** 2 * ridge_a
        _add_scatter(m, z[:n_a])
        _tridiagonalize(m, diagonal, beside)
        smallest, greatest = _extremes(diagonal, beside)
        degrees = (n_b - 1) / (n_a - 1)
        largest[permutation, 0] = degrees * greatest / (1.0 - greatest)
        largest[permutation, 1] = (1.0 - smallest) / smallest / degrees
    return largest


def permuted_eigenvalues(
    scores: NDArray[np.float64], in_a: NDArray[np.bool_], shrinkage: float
) -> NDArray[np.float64]:
    """Largest eigenvalues of both shrunk covariances against each other, for every labeling.

    Args:
        scores: `(items, r)`, the items' scores on principal components about their grand mean;
            `label_free_scores` are, because items centered by condition have the grand mean 0.
        in_a: `(labelings, items)`, whether the item counts as one of condition A.
        shrinkage: Of both covariances, at least 0 and less than 1.

    Returns:
        `(labelings, 2)`: that of A over B and that of B over A.
    """
    largest: NDArray[np.float64] = _largest_eigenvalues(
        np.ascontiguousarray(scores), np.ascontiguousarray(in_a), float(shrinkage)
    )
    return largest
