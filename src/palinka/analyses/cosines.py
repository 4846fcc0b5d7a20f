"""Cosine similarity of every pair of rows."""

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.result import scaled


def cosine_similarity(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compare every row with every row by the cosine of the angle between them.

    Args:
        x: `(items, d)`.

    Returns:
        `(items, items)`, symmetric, within [-1, 1]; a row of zeros has cosine 0 with everything,
        itself included, and every other row has exactly 1 with itself.
    """
    rows = scaled(x, axis=1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    there = norms[:, 0] > 0.0
    rows[there] /= norms[there]
    similarity: NDArray[np.float64] = np.clip(rows @ rows.T, -1.0, 1.0)
    similarity = (similarity + similarity.T) / 2.0
    np.fill_diagonal(similarity, there.astype(np.float64))
    return similarity
