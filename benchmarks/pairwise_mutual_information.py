"""Mutual information of all pairs against a plain transcription of its definition.

Run as `python benchmarks/pairwise_mutual_information.py`; it takes some minutes, nearly all of
them in the plain side.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import Case, Rival, duration, report
from palinka.analyses.pairwise_mutual_information import (
    PairwiseMutualInformation,
    outlying_units,
    pairwise_mutual_information,
)
from palinka.analyses.stats.joint_histogram import binned_rows, joint_histogram
from palinka.analyses.stats.similarity import triangle

Matrix = NDArray[np.floating]
ITEMS, UNITS, BINS, OUTLIER_Z = 250, 1_024, 15, 5.0
FIRST_CALL = """
import time, numpy, numba
from palinka.analyses import pairwise_mutual_information
x = numpy.random.default_rng(0).normal(size=(9, 64)).astype(numpy.float32)
start = time.perf_counter()
pairwise_mutual_information(x)
print(time.perf_counter() - start)
"""


class Plain(NamedTuple):
    """Result of the plain side, for each pair in turn."""

    information: list[float]
    covariance: list[float]
    counts: list[Matrix]


def gaussian() -> Matrix:
    """Every unit is kept in every pair."""
    return np.random.default_rng(0).normal(size=(ITEMS, UNITS)).astype(np.float32)


def heavy_tailed() -> Matrix:
    """Outliers differ from item to item, and with them masks and edges from pair to pair."""
    return np.random.default_rng(0).standard_t(3, size=(ITEMS, UNITS)).astype(np.float32)


def like_activations() -> Matrix:
    """Items that share most of what they are, with a few huge units, as hidden states have."""
    rng = np.random.default_rng(0)
    shared = rng.standard_t(4, size=UNITS)
    shared[rng.choice(UNITS, 5, replace=False)] *= 12
    return (shared + 0.7 * rng.standard_t(5, size=(ITEMS, UNITS))).astype(np.float32)


def z_scores(x: Matrix) -> Matrix:
    """Of one vector."""
    z: Matrix = (x - x.mean()) / x.std(ddof=1)
    return z


def entropy(p: Matrix) -> float:
    """In bits, as the definition has it."""
    return float(-(p * np.log2(p + 1e-12)).sum())


def plain(data: Matrix, once: bool = False) -> Plain:
    """The definition in a double loop; `once` takes the z-scores out of it."""
    found = Plain([], [], [])
    known = [z_scores(x) for x in data] if once else None
    for i in range(len(data)):
        for j in range(i + 1, len(data)):
            x, y = data[i], data[j]
            z_x, z_y = (known[i], known[j]) if known else (z_scores(x), z_scores(y))
            kept = ~((np.abs(z_x) > OUTLIER_Z) | (np.abs(z_y) > OUTLIER_Z))
            x, y = x[kept], y[kept]
            counts, _, _ = np.histogram2d(x, y, bins=BINS)
            p = counts / counts.sum()
            margins = entropy(p.sum(axis=1)) + entropy(p.sum(axis=0))
            found.information.append(margins - entropy(p))
            found.covariance.append(np.cov(x.astype(np.float64), y.astype(np.float64))[0, 1])
            found.counts.append(counts)
    return found


def agree(data: Matrix, expected: Plain, found: PairwiseMutualInformation) -> str:
    """Every count of every pair is the same, and so are both measures but for rounding."""
    rows = binned_rows(data, outlying_units(data, OUTLIER_Z), BINS)
    pairs = np.argwhere(np.triu(np.ones((len(data), len(data))), k=1))
    for (i, j), counts in zip(pairs, expected.counts, strict=True):
        np.testing.assert_array_equal(joint_histogram(rows, i, j), counts)
    information = np.abs(triangle(found.mutual_information) - expected.information).max()
    covariance = np.abs(triangle(found.covariance) - expected.covariance).max()
    assert information < 1e-11
    assert covariance < 1e-9 * np.abs(expected.covariance).max()
    kept = len(np.unique(triangle(found.samples)))
    return (
        f"counts of all {len(pairs):,} pairs identical ({kept} different numbers of kept units), "
        f"information within {information:.0e} bits, covariance within {covariance:.0e}"
    )


def case(name: str, make: Callable[[], Matrix], once: bool = False) -> Case:
    """One kind of data."""
    data = make()
    return Case(
        f"{ITEMS} x {UNITS:,}, {name}",
        ours=partial(pairwise_mutual_information, data, BINS, OUTLIER_Z),
        rivals=[
            Rival(
                "plain",
                partial(plain, data, once),
                check=partial(agree, data),
                at_least=None if once else 200,
                warm_up=False,
            )
        ],
        rounds=3,
        repeats=10,
    )


def first_calls() -> tuple[float, float]:
    """The first call of a process: where nothing has been compiled yet, and where all has."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        times = [
            float(subprocess.check_output([sys.executable, "-c", FIRST_CALL], env=environment))
            for _ in range(2)
        ]
    return times[0], times[1]


def main() -> None:
    """Time three kinds of data, and what compiling costs."""
    cold, warm = first_calls()
    report(
        "pairwise_mutual_information",
        "Mutual information and covariance of all pairs",
        [
            case("Gaussian", gaussian),
            case("heavy tails", heavy_tailed),
            case("like activations", like_activations),
            case("like activations, z-scores out of the plain loop", like_activations, once=True),
        ],
        remarks=(
            "Plain: a Python double loop over pairs with z-scores, `np.histogram2d`, entropies and "
            "`np.cov`; in the last row with the z-scores of each item computed once. Every count "
            "of every pair is compared. The first call on a computer compiles the loops, which "
            f"took {duration(cold)} here; later processes find them compiled, and their first "
            f"call took {duration(warm)}."
        ),
    )


if __name__ == "__main__":
    main()
