"""ROC AUC from ranks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

# Sums of ranks of this many rows are exact in float32, whose products take half the time.
MAX_FLOAT32_ROWS = 4095


def rank_auc(values: NDArray[Any], targets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The area under the ROC curve of each column as a detector of the targets.

    It is the probability that a random target has a higher value than a random other row,
    where ties count one half; 0.5 is chance.

    Args:
        values: `(rows, columns)`.
        targets: Which rows are to be detected, `(rows,)`; some, but not all.

    Returns:
        `(columns,)`, between 0 and 1.

    Source:
        Hanley & McNeil (1982), by the statistic of Mann & Whitney (1947).
    """
    auc: NDArray[np.float64] = auc_of_ranks(column_ranks(values), targets[None])[0]
    return auc


def column_ranks(values: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """Ranks within each column, ties averaged, in a dtype in which their sums are exact."""
    ranks: NDArray[np.floating[Any]] = rankdata(values, axis=0)
    return ranks.astype(np.float32) if len(ranks) <= MAX_FLOAT32_ROWS else ranks


def auc_of_ranks(
    ranks: NDArray[np.floating[Any]], targets: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The AUC of each column under each labelling.

    Args:
        ranks: From `column_ranks`, `(rows, columns)`.
        targets: `(labellings, rows)`; in each some rows, but not all, are targets.

    Returns:
        `(labellings, columns)`.
    """
    n_targets = targets.sum(axis=1, keepdims=True)
    sums = (targets.astype(ranks.dtype) @ ranks).astype(np.float64)
    wins = sums - n_targets * (n_targets + 1) / 2.0
    return np.asarray(wins / (n_targets * (targets.shape[1] - n_targets)))
