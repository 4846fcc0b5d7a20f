"""Cosine similarity of every pair of rows."""

import numpy as np
from numpy.typing import NDArray


def cosine_similarity(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compare every row with every row by the cosine of the angle between them.

    Args:
        x: `(items, d)`.

    Returns:
        `(items, items)`, symmetric, within [-1, 1]; a row of zeros has cosine 0 with everything,
        itself included, and every other row has exactly 1 with itself.
    """
    # Dividing by the largest value first keeps the squares of huge and tiny rows representable.
    largest = np.abs(x).max(axis=1, keepdims=True)
    there = largest[:, 0] > 0.0
    rows = np.divide(x, largest, out=np.zeros_like(x), where=there[:, None])
    rows[there] /= np.linalg.norm(rows[there], axis=1, keepdims=True)
    similarity: NDArray[np.float64] = np.clip(rows @ rows.T, -1.0, 1.0)
    similarity = (similarity + similarity.T) / 2.0
    np.fill_diagonal(similarity, there.astype(np.float64))
    return similarity
