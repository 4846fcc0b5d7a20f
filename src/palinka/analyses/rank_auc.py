"""How well a number tells two groups apart, by ranks alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata


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
    n_targets = int(targets.sum())
    n_others = len(targets) - n_targets
    ranks = rankdata(values, axis=0)
    wins = ranks[targets].sum(axis=0) - n_targets * (n_targets + 1) / 2.0
    return np.asarray(wins / (n_targets * n_others), dtype=np.float64)
