"""Whether a similarity matrix holds words of one group closer together than words of two."""

import numpy as np
from numpy.typing import NDArray


def selectivity_index(similarity: NDArray[np.float64], membership: NDArray[np.int64]) -> float:
    """Mean similarity within groups, over mean similarity between groups.

    Every group, and every pair of groups, counts once, however many words it has.

    Args:
        similarity: `(items, items)`.
        membership: The group of each item, `(items,)`, counted from 0.

    Returns:
        The ratio; NaN where there is one group only, or nothing between groups.
    """
    between = similarity_between(similarity, membership)
    if between.size == 0 or between.mean() == 0.0:
        return float("nan")
    return float(similarity_within(similarity, membership).mean() / between.mean())


def similarity_within(
    similarity: NDArray[np.float64], membership: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean similarity of different words of a group, for each group."""
    blocks = [similarity[np.ix_(items, items)] for items in members_of(membership)]
    return np.array([block[np.triu_indices(len(block), 1)].mean() for block in blocks])


def similarity_between(
    similarity: NDArray[np.float64], membership: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean similarity of words of two groups, for each pair of groups; none for one group."""
    members = members_of(membership)
    pairs = zip(*np.triu_indices(len(members), 1), strict=True)
    return np.array([similarity[np.ix_(members[i], members[j])].mean() for i, j in pairs])


def members_of(membership: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The items of each group."""
    return [np.flatnonzero(membership == group) for group in range(membership.max() + 1)]
