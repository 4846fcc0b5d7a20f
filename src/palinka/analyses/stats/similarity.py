"""Similarity matrices and their comparison."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.result import scaled
from palinka.analyses.stats.compiled import compiled
from palinka.analyses.stats.permutation import chunks
from palinka.errors import progress

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Comparison = Literal["pearson", "spearman", "kendall", "cka"]

# Cosines closer than this differ by rounding alone.
SAME = 1e-14
# Maximum number of entries of permuted or resampled triangles: 32 MiB of float64.
CHUNK_ELEMENTS = 2**22


def cosine_similarity(x: Array) -> Array:
    """Cosines between rows `(items, d)`: `(items, items)`, symmetric, within [-1, 1].

    A row of zeros has cosine 0, also with itself; every other row has exactly 1 with itself.
    """
    rows = scaled(x, axis=1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    there = norms[:, 0] > 0.0
    rows[there] /= norms[there]
    similarity: Array = np.clip(rows @ rows.T, -1.0, 1.0)
    similarity = (similarity + similarity.T) / 2.0
    np.fill_diagonal(similarity, there.astype(np.float64))
    return similarity


def dense_ranks(values: Array) -> Indices:
    """Indices from 0 without gaps; equal values share one."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def kendall_tau_a(x: Indices, y: Indices, weights: Array) -> float:
    """Concordant minus discordant pairs of samples, divided by all pairs, ties included.

    A sample of weight 2 counts as two samples that are not compared with each other, so that
    what a bootstrap drew twice does not pull the coefficient towards zero. All are `(samples,)`,
    `x` and `y` dense ranks; NaN where fewer than two samples have weight.

    Source:
        Kendall (1938); counted with Fenwick's (1994) tree of cumulative weights.
    """
    pairs = (weights.sum() ** 2 - (weights**2).sum()) / 2.0
    if pairs == 0.0:
        return float("nan")
    return float(_concordance(np.argsort(x, kind="stable"), x, y, weights) / pairs)


@compiled
def _concordance(order: Indices, x: Indices, y: Indices, weights: Array) -> float:
    """Weight of concordant pairs minus weight of discordant ones; `order` sorts by `x`."""
    tree = np.zeros(y.max() + 2)
    seen, difference, start = 0.0, 0.0, 0
    while start < order.size:
        stop = start
        # Samples that tie in x are all looked up before any of them is entered.
        while stop < order.size and x[order[stop]] == x[order[start]]:
            sample = order[stop]
            lower = 0.0
            node = y[sample]
            while node > 0:
                lower += tree[node]
                node -= node & -node
            not_higher = 0.0
            node = y[sample] + 1
            while node > 0:
                not_higher += tree[node]
                node -= node & -node
            difference += weights[sample] * (lower - (seen - not_higher))
            stop += 1
        for position in range(start, stop):
            sample = order[position]
            seen += weights[sample]
            node = y[sample] + 1
            while node < tree.size:
                tree[node] += weights[sample]
                node += node & -node
        start = stop
    return difference


def compare_matrices(x: Array, y: Array, compare: Comparison = "pearson") -> float:
    """Compare two symmetric matrices of the same items, `(items, items)`.

    By `"pearson"`, `"spearman"` or `"kendall"` (τ-a, every tie counting as neither concordant nor
    discordant) of the upper triangles without the diagonal; or by `"cka"`, the cosine between the
    doubly centered whole matrices. Within [-1, 1] (CKA within [0, 1]); NaN for fewer than three
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
    x: Array, y: Array, compare: Comparison, permutations: int, random: np.random.Generator
) -> Array:
    """Scores, `(permutations,)`, if the items of `x` and those of `y` are unrelated.

    Any item of `y` is exchanged with any other, its row and its column together, since entries that
    share an item are not independent (Mantel, 1967).
    """
    items, kendall = len(x), compare == "kendall"
    upper = np.triu_indices(items, int(kendall))
    scores = np.empty(permutations)
    if kendall:
        fixed: NDArray[Any] = _pair_ranks(x)
        matrix: NDArray[Any] = np.zeros((items, items), dtype=np.int64)
        matrix[upper] = _pair_ranks(y)
        matrix += matrix.T
    else:
        # Both triangles in one: what is off the diagonal counts twice.
        fixed = _normalized(x, compare)[upper] * np.where(upper[0] == upper[1], 1.0, 2.0)
        matrix = _normalized(y, compare)
    weights = np.ones(len(fixed))
    for chunk in draws_in_chunks(permutations, len(upper[0]), "Permuting words"):
        size = chunk.stop - chunk.start
        order = random.permuted(np.tile(np.arange(items), (size, 1)), axis=1)
        permuted = matrix[order[:, upper[0]], order[:, upper[1]]]
        taus = (kendall_tau_a(fixed, row, weights) for row in permuted)
        scores[chunk] = list(taus) if kendall else permuted @ fixed
    return scores


def draws_in_chunks(draws: int, entries: int, description: str) -> Iterator[slice]:
    """Slices of draws of `entries` each that fit in memory, with a progress bar."""
    with progress(description, draws, "draws") as bar:
        for chunk in chunks(draws, CHUNK_ELEMENTS // entries):
            yield chunk
            bar.update(chunk.stop - chunk.start)


def triangle(matrix: NDArray[Any]) -> NDArray[Any]:
    """The entries above the diagonal, row by row."""
    entries: NDArray[Any] = matrix[np.triu_indices(len(matrix), 1)]
    return entries


def is_constant(matrix: Array) -> bool:
    """True if every pair of different items has the same similarity."""
    entries = triangle(matrix)
    return bool(entries.size == 0 or np.ptp(entries) <= SAME)


def _pair_ranks(matrix: Array) -> Indices:
    entries = triangle(matrix)
    return np.zeros(len(entries), np.int64) if is_constant(matrix) else dense_ranks(entries)


def _normalized(matrix: Array, compare: Comparison) -> Array:
    if compare == "cka":
        means = matrix.mean(axis=0)
        centered = matrix - means[:, None] - means[None, :] + means.mean()
        defined = bool(np.abs(centered).max() > SAME)
    else:
        rows, columns = np.triu_indices(len(matrix), 1)
        values = triangle(matrix)
        if compare == "spearman":
            from scipy.stats import rankdata  # slow to import

            values = rankdata(values)
        centered = np.zeros_like(matrix)
        centered[rows, columns] = centered[columns, rows] = values - values.mean()
        defined = not is_constant(matrix)
    return centered / np.linalg.norm(centered) if defined else np.full_like(matrix, np.nan)


def similarity_within(similarity: Array, membership: Indices) -> Array:
    """Mean similarity of different words of a group, for each group."""
    groups = members_of(membership)
    return np.array([triangle(similarity[np.ix_(items, items)]).mean() for items in groups])


def similarity_between(similarity: Array, membership: Indices) -> Array:
    """Mean similarity of words of two groups, for each pair of groups; none for one group."""
    pairs = combinations(members_of(membership), 2)
    return np.array([similarity[np.ix_(first, second)].mean() for first, second in pairs])


def members_of(membership: Indices) -> list[Indices]:
    """The items of each group."""
    return [np.flatnonzero(membership == group) for group in range(membership.max() + 1)]
