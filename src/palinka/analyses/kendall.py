"""Kendall's rank correlation τ-a of weighted samples, in time n·log n."""

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.compiled import compiled


def dense_ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ranks from 0 without gaps; equal values share one."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def kendall_tau_a(
    x: NDArray[np.int64], y: NDArray[np.int64], weights: NDArray[np.float64]
) -> float:
    """Concordant minus discordant pairs of samples, divided by all pairs, ties included.

    A sample of weight 2 counts as two samples that are not compared with each other, so that
    what a bootstrap drew twice does not pull the coefficient towards zero.

    Args:
        x: `(samples,)`, dense ranks.
        y: `(samples,)`, dense ranks.
        weights: `(samples,)`, not negative.

    Returns:
        A number within [-1, 1]; NaN where fewer than two samples have weight.

    Source:
        Kendall (1938); counted with Fenwick's (1994) tree of cumulative weights.
    """
    pairs = (weights.sum() ** 2 - (weights**2).sum()) / 2.0
    if pairs == 0.0:
        return float("nan")
    return float(_concordance(np.argsort(x, kind="stable"), x, y, weights) / pairs)


@compiled
def _concordance(
    order: NDArray[np.int64],
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> float:
    """Weight of concordant pairs minus weight of discordant ones; `order` sorts by `x`."""
    tree = np.zeros(y.max() + 2)
    seen = 0.0
    difference = 0.0
    start = 0
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
