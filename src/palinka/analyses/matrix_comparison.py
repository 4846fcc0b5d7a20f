"""How alike two similarity matrices of the same items are, and whether that could be chance."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from palinka.analyses.kendall import dense_ranks, kendall_tau_a
from palinka.progress import progress

Comparison = Literal["pearson", "spearman", "kendall", "cka"]

# Cosines closer than this differ by rounding alone.
SAME = 1e-14
# Entries of permuted or resampled triangles held at a time: 32 MiB of float64.
ENTRIES_AT_ONCE = 2**22


def compare_matrices(
    x: NDArray[np.float64], y: NDArray[np.float64], compare: Comparison = "pearson"
) -> float:
    """One number for how alike two symmetric matrices are.

    Args:
        x: `(items, items)`.
        y: `(items, items)`, of the same items.
        compare: `"pearson"`, `"spearman"` or `"kendall"` (τ-a, every tie counting as neither
            concordant nor discordant) of the upper triangles without the diagonal; or `"cka"`,
            the cosine between the doubly centered whole matrices.

    Returns:
        A number within [-1, 1] (CKA within [0, 1]); NaN where it is not defined: fewer than three
        items, or a matrix whose entries are all the same (τ-a is 0 there).

    Source:
        Kriegeskorte, Mur & Bandettini (2008) for the comparison; Nili et al. (2014) for τ-a;
        Kornblith et al. (2019), equations 2 and 3, for CKA.
    """
    if len(x) < 3:
        return float("nan")
    if compare == "kendall":
        ranks_x, ranks_y = _pair_ranks(x), _pair_ranks(y)
        return kendall_tau_a(ranks_x, ranks_y, np.ones(len(ranks_x)))
    # The score is an inner product of matrices whose elements' squares add up to one.
    return float(np.clip((_normalized(x, compare) * _normalized(y, compare)).sum(), -1.0, 1.0))


def mantel_scores(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    compare: Comparison,
    permutations: int,
    random: np.random.Generator,
) -> NDArray[np.float64]:
    """Scores under the null that the items of `x` have nothing to do with those of `y`.

    Any item of `y` is exchanged with any other, its row and its column together: entries that
    share an item are not independent, and each permuted matrix is as self-consistent as the
    observed one.

    Args:
        x: `(items, items)`.
        y: `(items, items)`.
        compare: As in `compare_matrices`.
        permutations: How many.
        random: Where the permutations come from.

    Returns:
        `(permutations,)`.

    Source:
        Mantel (1967).
    """
    items = len(x)
    upper = np.triu_indices(items)
    scores = np.empty(permutations)
    if compare == "kendall":
        upper = np.triu_indices(items, 1)
        ranks, weights = _pair_ranks(x), np.ones(len(upper[0]))
        permuted_values = np.zeros((items, items), dtype=np.int64)
        permuted_values[upper] = _pair_ranks(y)
        permuted_values += permuted_values.T
    else:
        # Both triangles in one: what is off the diagonal counts twice.
        twice = np.where(upper[0] == upper[1], 1.0, 2.0)
        fixed = _normalized(x, compare)[upper] * twice
        permuted_matrix = _normalized(y, compare)
    for chunk in chunks(permutations, len(upper[0]), "Permuting words"):
        size = chunk.stop - chunk.start
        order = random.permuted(np.tile(np.arange(items), (size, 1)), axis=1)
        entries = order[:, upper[0]] * items + order[:, upper[1]]
        if compare == "kendall":
            permuted = permuted_values.ravel()[entries]
            scores[chunk] = [kendall_tau_a(ranks, row, weights) for row in permuted]
        else:
            scores[chunk] = permuted_matrix.ravel()[entries] @ fixed
    return scores


def chunks(draws: int, entries: int, description: str) -> Iterator[slice]:
    """Slices of so many draws, of so many entries each, as memory should hold; with a bar."""
    step = max(1, ENTRIES_AT_ONCE // entries)
    with progress(description, draws, "draws") as bar:
        for start in range(0, draws, step):
            stop = min(start + step, draws)
            yield slice(start, stop)
            bar.update(stop - start)


def triangle(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The entries above the diagonal, row by row."""
    return matrix[np.triu_indices(len(matrix), 1)]


def is_constant(matrix: NDArray[np.float64]) -> bool:
    """Whether every pair of different items has the same similarity."""
    entries = triangle(matrix)
    return bool(entries.size == 0 or np.ptp(entries) <= SAME)


def _pair_ranks(matrix: NDArray[np.float64]) -> NDArray[np.int64]:
    entries = triangle(matrix)
    return np.zeros(len(entries), np.int64) if is_constant(matrix) else dense_ranks(entries)


def _normalized(matrix: NDArray[np.float64], compare: Comparison) -> NDArray[np.float64]:
    """Center a matrix in the way of the comparison, and scale its squares to add up to one."""
    if compare == "cka":
        means = matrix.mean(axis=0)
        centered = matrix - means[:, None] - means[None, :] + means.mean()
        defined = bool(np.abs(centered).max() > SAME)
    else:
        rows, columns = np.triu_indices(len(matrix), 1)
        values = triangle(matrix)
        values = rankdata(values) if compare == "spearman" else values
        centered = np.zeros_like(matrix)
        centered[rows, columns] = centered[columns, rows] = values - values.mean()
        defined = not is_constant(matrix)
    return centered / np.linalg.norm(centered) if defined else np.full_like(matrix, np.nan)
