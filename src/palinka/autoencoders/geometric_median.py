"""The point with the smallest sum of distances to all rows."""

import torch
from torch import Tensor

from palinka.kernels.precision import statistics_dtype

TOLERANCE = 1e-6
MOST_STEPS = 500


@torch.no_grad()
def geometric_median(rows: Tensor) -> Tensor:
    """Find the geometric median of rows, until a step is a millionth of their mean distance.

    Unlike the mean it is not drawn to a few rows of enormous norm.

    Args:
        rows: `(rows, width)`, at least one.

    Returns:
        `(width,)`, in float32 or better.

    Source:
        Weiszfeld (1937); Vardi & Zhang (2000), the multivariate L1-median and associated data
        depth, for steps from a point that is itself a row.
    """
    rows = rows.to(statistics_dtype(rows.dtype))
    point = rows.mean(dim=0)
    for _ in range(MOST_STEPS):
        distances = (rows - point).norm(dim=1)
        here = distances == 0
        weights = distances.reciprocal().masked_fill(here, 0.0)
        total = weights.sum()
        if total == 0:  # all rows are one point
            break
        step = weights @ rows / total - point
        # Rows that lie on the point hold it there, up to the pull of the others.
        pull = total * step.norm()
        step = step * (1.0 - here.sum() / pull).clamp_min(0.0).nan_to_num(0.0)
        point = point + step
        if step.norm() <= TOLERANCE * distances.mean():
            break
    return point
