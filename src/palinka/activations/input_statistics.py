"""By how much rows are shifted and scaled before an autoencoder sees them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.activations.cache import Cache
from palinka.activations.memory import MemoryRows
from palinka.errors import InputError
from palinka.progress import progress

# Small enough for the processor's caches to help, large enough for one read.
CHUNK_NUMBERS = 2**22
WHOLE = slice(None)


@dataclass(frozen=True)
class InputStatistics:
    """An autoencoder's input is `(row - mean) * scale`.

    Attributes:
        mean: What is subtracted from each row, `(width,)`, float64; zeros for no centring.
        scale: What the difference is multiplied by; 1 for no scaling.
    """

    mean: NDArray[np.float64]
    scale: float


def input_statistics(
    rows: Cache | MemoryRows, *, center: bool, unit_norm: bool, columns: slice = WHOLE
) -> InputStatistics:
    """Measure the shift and the scale on all rows.

    With both on, the rows are read once more: the norms of centred rows do not follow from
    sums that were taken before the mean was known. Nor do those of a part of the columns.

    Args:
        rows: The training rows.
        center: Whether to shift by the mean row.
        unit_norm: Whether to scale so that the mean Euclidean norm, after centring if that is
            on, is 1.
        columns: The part of each row that is meant, from `start` to before `stop`.

    Raises:
        InputError: If all rows are equal (zero without `center`) and `unit_norm` is on.
    """
    statistics = rows.statistics
    whole = rows.width == len(range(*columns.indices(rows.width)))
    mean = statistics.mean[columns]
    mean = mean if center else np.zeros_like(mean)
    if not unit_norm:
        return InputStatistics(mean, 1.0)
    known = whole and not center
    norm = statistics.mean_norm if known else _mean_distance(rows, mean, columns)
    if norm == 0:
        raise InputError(
            f"all {rows.rows} training rows are {'equal' if center else 'zero'}, so that nothing "
            "scales them to unit norm; choose another site, or set unit_norm to false"
        )
    return InputStatistics(mean, 1.0 / norm)


def _mean_distance(rows: Cache | MemoryRows, mean: NDArray[np.float64], columns: slice) -> float:
    """The mean Euclidean distance of a row from `mean`."""
    center = torch.from_numpy(mean).float()
    step = max(1, CHUNK_NUMBERS // rows.width)
    total = 0.0
    with progress("measuring the rows' norms", rows.rows, "rows") as bar:
        for start in range(0, rows.rows, step):
            chunk = rows.read_rows(start, min(start + step, rows.rows))
            # Single precision keeps seven digits of each distance, and half the time.
            distances = torch.linalg.vector_norm(chunk[:, columns].float() - center, dim=1)
            total += float(distances.sum(dtype=torch.float64))
            bar.update(len(chunk))
    return total / rows.rows
