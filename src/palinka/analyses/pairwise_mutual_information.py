"""Mutual information and covariance of every pair of items, over units."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.result import Array, Mask, Result, Table, as_matrix, scaled, takes
from palinka.analyses.stats import joint_histogram
from palinka.analyses.stats.compiled import threads
from palinka.analyses.stats.joint_histogram import EPSILON, BinnedRows
from palinka.analyses.stats.similarity import triangle
from palinka.errors import InputError, progress

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
MAX_BINS = 1024
ROWS_PER_TASK = 8
# Relative differences up to this come from the order in which numbers were added.
ROUNDING = 1e-12
OUTLIER_Z = 5.0
# Activations with a larger share of exact zeros are sparse. Dense units have hardly any.
DENSE_ZEROS = 0.1
# Pairs that drop a larger share of their units are noted.
NOTED_SHARE = 0.01


@dataclass(frozen=True)
class PairwiseMutualInformation(Result):
    """Dependence of pairs of items; matrices are `(items, items)`, zero unless row < column.

    Attributes:
        mutual_information: Of each pair, in bits, from its joint histogram. Biased upward: compare
            it with `null`, not with 0.
        covariance: Of each pair, in squared units of the activations.
        samples: Units that were kept for each pair.
        mutual_information_corrected: With the Miller–Madow correction, in bits, which leaves much
            of the bias where cells are many and units few.
        correlation: Pearson's r of mutual information and covariance over pairs; NaN where
            either is the same for all pairs.
        null: `(permutations,)`, the mutual information of randomly chosen pairs, the units of one
            item shuffled; `None` without permutations.
    """

    mutual_information: Array
    covariance: Array
    samples: Array
    mutual_information_corrected: Array
    correlation: float
    null: Array | None = None

    def scalars(self) -> dict[str, float]:
        """The correlation, the means over pairs, and mean and 95th percentile of the null."""
        names = ("mutual_information", "mutual_information_corrected", "covariance")
        means = {f"mean_{name}": float(triangle(getattr(self, name)).mean()) for name in names}
        if self.null is not None:
            means["null_mean"] = float(self.null.mean())
            means["null_95"] = float(np.percentile(self.null, 95))
        return {"correlation": self.correlation, **means}

    def headline(self, units: str, conditions: Sequence[str]) -> str:
        """Mean information beside that of shuffled units, and mean covariance."""
        of = self.scalars()
        line = f"mean mutual information {of['mean_mutual_information']:.3g} bits"
        if self.null is not None:
            shuffled = f"with shuffled {units} {of['null_mean']:.3g}"
            line += f" ({shuffled}, 95 % of pairs below {of['null_95']:.3g})"
        line += f", mean covariance {of['mean_covariance']:.3g}"
        known = np.isfinite(self.correlation)
        r = f"correlation of the two {self.correlation:.2f}" if known else "all pairs equal"
        return f"{line}, {r}"

    def tables(self) -> dict[str, Table]:
        """The distributions over pairs, as percentiles."""
        percentiles: Table = {"percentile": PERCENTILES}
        for name in ("mutual_information", "mutual_information_corrected", "covariance", "samples"):
            percentiles[name] = np.percentile(triangle(getattr(self, name)), PERCENTILES)
        return {"percentiles": percentiles}


def all_equal(values: Array) -> bool:
    """True where values differ by rounding alone."""
    return bool(np.ptp(values) <= ROUNDING * np.abs(values).max())


def correlation_over_pairs(first: Array, second: Array) -> float:
    """Pearson's r, or NaN where either is the same for all pairs, but for rounding."""
    if all_equal(first) or all_equal(second):
        return float("nan")
    return float(np.corrcoef(scaled(first, axis=0), scaled(second, axis=0))[0, 1])


@takes("each condition")
def pairwise_mutual_information(
    x: ArrayLike, bins: int = 15, outlier_z: float | None = None, permutations: int = 200,
    seed: int = 0,
) -> PairwiseMutualInformation:  # fmt: skip
    """Estimate the mutual information and the covariance of every pair of items.

    The samples of a pair are its units. A unit is left out of a pair where its z-score in either
    item exceeds `outlier_z`; bins are equally wide from the least to the largest value kept, and
    the counts are those of `numpy.histogram2d`, in the dtype of `x`. Pairs in which an item is
    constant over the units kept have no information and no covariance.

    With few units the estimate is far above 0 without any dependence, by an amount that depends on
    the distributions of the items, and Miller and Madow's correction, for cells that hold many
    units each, removes about a third of it (15 bins, 128 normal units). `null` is the estimate
    without dependence: in a random pair, the units of one item (and which are outliers) are
    shuffled, so that both distributions stay.

    Args:
        x: Activations, `(items, units)`, all of one condition and site.
        bins: Bins of either item, from 1 to 1,024.
        outlier_z: The largest absolute z-score that is kept; 0 keeps every unit. Defaults to 5 for
            dense units, and to 0 where more than a tenth of `x` is exactly zero, as in latents:
            their rare activations have large z-scores and carry the information.
        permutations: Number of pairs with shuffled units; 0 for no null.
        seed: Determines them.

    Source:
        Shannon (1948), "A mathematical theory of communication"; Miller (1955), "Note on the bias
        of information estimates".
    """
    values = as_matrix(x, "x", minimum_rows=3)
    # Other float types, such as those of another byte order, become float64.
    precision = np.float32 if values.dtype == np.float32 else np.float64
    values = np.ascontiguousarray(values, dtype=precision)
    with np.errstate(over="ignore"):
        too_wide = ~np.isfinite(np.ptp(values, axis=1))
    if too_wide.any():
        item = f"item {too_wide.argmax()}; divide it by a constant"
        raise InputError(f"x spans more than {values.dtype} can hold in {item}")
    if bins not in range(1, MAX_BINS + 1):
        raise InputError(f"bins is {bins}; expected a whole number from 1 to {MAX_BINS}")
    if outlier_z is None:
        zeros = 1.0 - np.count_nonzero(values) / values.size
        outlier_z = OUTLIER_Z if zeros <= DENSE_ZEROS else 0.0
    if not 0 <= outlier_z < np.inf:
        raise InputError(f"outlier_z is {outlier_z}; expected a z-score, or 0 to keep every unit")
    outlying = outlying_units(values, outlier_z)
    rows = joint_histogram.binned_rows(values, outlying, int(bins))
    information, corrected = _information(rows)
    samples, covariance = _samples_and_covariance(rows)
    correlation = correlation_over_pairs(triangle(information), triangle(covariance))
    null = _null(values, outlying, int(bins), permutations, seed) if permutations else None
    notes = tuple(_notes(rows, samples, information, correlation))
    return PairwiseMutualInformation(
        information, covariance, samples, corrected, correlation, null, notes=notes
    )


def outlying_units(values: NDArray[np.floating[Any]], outlier_z: float) -> Mask:
    """Mask of values whose z-score in their item, in their dtype, exceeds the limit."""
    if outlier_z == 0 or values.shape[1] < 2:
        return np.zeros(values.shape, dtype=np.bool_)
    values = scaled(values, axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        deviations = values - values.mean(axis=1, keepdims=True)
        z = np.abs(deviations / values.std(axis=1, ddof=1, keepdims=True))
    # Items without variance have no z-scores, and rounding must not invent some.
    return np.asarray((z > outlier_z) & (np.ptp(values, axis=1, keepdims=True) > 0))


def _information(rows: BinnedRows) -> tuple[Array, Array]:
    """Mutual information of all pairs, plain and corrected, by all threads."""
    items, units = rows.values.shape
    information, corrected = np.zeros((2, items, items))
    counts = np.arange(units + 1)
    count_logs = counts * np.log2(np.maximum(counts, 1))
    # Early rows have more pairs than late ones: every task gets some of either.
    tasks = max(1, items // ROWS_PER_TASK)
    shares = [np.arange(start, items, tasks) for start in range(tasks)]

    def work(share: NDArray[np.intp]) -> int:
        joint_histogram.fill_pairs(
            rows.digits, rows.bins + 1, rows.binning, rows.varies, share, count_logs,
            joint_histogram.room_for_counts(rows), information, corrected,
        )  # fmt: skip
        return int((items - 1 - share).sum())

    with (
        progress("mutual information", items * (items - 1) // 2, "pairs") as bar,
        ThreadPoolExecutor(threads()) as pool,
    ):
        for done in pool.map(work, shares):
            bar.update(done)
    return information, corrected


def _null(
    values: NDArray[np.floating[Any]], outlying: Mask, bins: int, permutations: int, seed: int
) -> Array:
    """Mutual information of random pairs, the units of one item shuffled."""
    rng, null = np.random.default_rng(seed), np.zeros(permutations)
    for draw in range(permutations):
        pair = rng.permutation(len(values))[:2]
        both, out, order = values[pair], outlying[pair], rng.permutation(values.shape[1])
        both[1], out[1] = both[1, order], out[1, order]
        rows = joint_histogram.binned_rows(both, out, bins)
        if rows.varies.all():
            p = joint_histogram.joint_histogram(rows, 0, 1) / (~out.any(axis=0)).sum()
            bits = [(q * np.log2(q + EPSILON)).sum() for q in (p, p.sum(axis=0), p.sum(axis=1))]
            null[draw] = bits[0] - bits[1] - bits[2]
    return null


def _samples_and_covariance(rows: BinnedRows) -> tuple[Array, Array]:
    """Samples and covariances of all pairs, by matrix products with zeros for dropped units.

    Runs after the loops: BLAS threads stay awake for a while and would take the cores from them.
    """
    outlying = rows.outlying
    inliers = rows.values.astype(np.float64)
    inliers[outlying] = 0.0
    counts = np.maximum((~outlying).sum(axis=1, keepdims=True), 1)
    centered = inliers - inliers.sum(axis=1, keepdims=True) / counts
    centered[outlying] = 0.0
    # Few units are outliers of any item.
    units = outlying.any(axis=0)
    dropped = outlying[:, units].astype(np.float64)
    each = dropped.sum(axis=1)
    samples = outlying.shape[1] - each[:, None] - each + dropped @ dropped.T
    # Center both on the units of the pair. A centered item sums to zero, so that the sum over the
    # kept units is minus the sum over the dropped ones.
    sums = centered[:, units] @ dropped.T
    covariance = centered @ centered.T
    covariance -= sums * sums.T / np.maximum(samples, 1.0)
    covariance /= np.maximum(samples - 1.0, 1.0)
    covariance[rows.constant_pairs()] = 0.0
    return np.triu(samples, k=1), np.triu(covariance, k=1)


def _notes(rows: BinnedRows, samples: Array, information: Array, correlation: float) -> list[str]:
    """Items and pairs without information, pairs that drop many units, no correlation."""
    notes = []
    varying = np.ptp(rows.values, axis=1) > 0
    if not varying.all():
        given = f"{(~varying).sum()} of {len(varying)} items have no variance"
        notes.append(f"{given}: their pairs have no information")
    uniform = triangle(rows.constant_pairs() & varying & varying[:, None])
    if uniform.any():
        given = f"{uniform.sum()} of {len(uniform)} pairs have an item that is constant"
        notes.append(f"{given} over the units kept: they have no information")
    units = rows.values.shape[1]
    dropped = units - triangle(samples)
    many = dropped > NOTED_SHARE * units
    if many.any():
        notes.append(
            f"{many.sum()} of {len(many)} pairs drop more than {100 * NOTED_SHARE:g} % of their "
            f"units as outliers, up to {int(dropped.max())} of {units}; outlier_z: 0 keeps all"
        )
    if np.isnan(correlation):
        same = "mutual information" if all_equal(triangle(information)) else "covariance"
        notes.append(f"no correlation: all pairs have the same {same}")
    return notes
