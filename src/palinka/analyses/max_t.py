"""Corrected p-values from the largest |t| over all units under shuffled labels."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.blocks import blocks
from palinka.analyses.permutation_p_values import permutation_p_values
from palinka.progress import progress

# How many numbers a working array may hold, whatever the number of units.
WORKING_SIZE = 1 << 22

Matrix = NDArray[np.float64]


def paired_max_t(differences: Matrix, permutations: int, seed: int) -> NDArray[np.float64]:
    """Corrected p-values of paired tests, by flipping the signs of whole items.

    Exact where the differences are symmetric about 0; it takes the correlations between units
    into account, and no distribution for granted.

    Args:
        differences: Second minus first condition, `(items, units)`, each unit with variance.
        permutations: How many sign-flips.
        seed: Determines the sign-flips.

    Returns:
        `(1 + sign-flips with a largest |t| at least as high) / (permutations + 1)`, `(units,)`.

    Source:
        Westfall & Young (1993); Nichols & Holmes (2002).
    """
    items = len(differences)
    squares = np.square(differences).sum(axis=0)

    # Flipping signs leaves a unit's sum of squares alone, so |t| grows with (sum)² / squares,
    # which stays finite where all differences come out equal.
    def statistics(signs: Matrix) -> Matrix:
        return np.asarray(np.square(signs @ differences) / (items * squares))

    def draw(rng: np.random.Generator, n: int) -> Matrix:
        return np.where(rng.random((n, items)) < 0.5, -1.0, 1.0)

    return _corrected(
        statistics, np.ones((1, items)), draw, differences.shape[1], permutations, seed
    )


def unpaired_max_t(a: Matrix, b: Matrix, permutations: int, seed: int) -> NDArray[np.float64]:
    """Corrected p-values of Welch tests, by dealing the items anew to the two conditions.

    Exact where the conditions have one distribution when they do not differ in their means.

    Args:
        a: `(items_a, units)`.
        b: `(items_b, units)`; each unit has variance within a condition.
        permutations: How many shuffles of the condition labels.
        seed: Determines the shuffles.

    Returns:
        `(1 + shuffles with a largest |t| at least as high) / (permutations + 1)`, `(units,)`.

    Source:
        Westfall & Young (1993); Janssen (1997) for the studentized statistic.
    """
    pooled = np.concatenate([a, b])
    pooled = pooled - pooled.mean(axis=0)
    squared = np.square(pooled)
    n_a, n_b = len(a), len(b)
    total, total_squares = pooled.sum(axis=0), squared.sum(axis=0)
    # Below this a variance of the mean is rounding; the floor keeps |t| finite there.
    floor = np.finfo(np.float64).eps * total_squares

    def statistics(labels: Matrix) -> Matrix:
        sums_b, squares_b = labels @ pooled, labels @ squared
        sums_a, squares_a = total - sums_b, total_squares - squares_b
        means_a, means_b = sums_a / n_a, sums_b / n_b
        error_a = (squares_a - sums_a * means_a) / (n_a * (n_a - 1))
        error_b = (squares_b - sums_b * means_b) / (n_b * (n_b - 1))
        return np.asarray(np.square(means_b - means_a) / np.maximum(error_a + error_b, floor))

    observed = np.concatenate([np.zeros(n_a), np.ones(n_b)])[None]

    def draw(rng: np.random.Generator, n: int) -> Matrix:
        return rng.permuted(np.tile(observed, (n, 1)), axis=1)

    return _corrected(statistics, observed, draw, a.shape[1], permutations, seed)


def _corrected(
    statistics: Callable[[Matrix], Matrix],
    observed_labels: Matrix,
    draw: Callable[[np.random.Generator, int], Matrix],
    units: int,
    permutations: int,
    seed: int,
) -> NDArray[np.float64]:
    """Compare each unit's statistic with the largest of every shuffle."""
    rng = np.random.default_rng(seed)
    observed = statistics(observed_labels)[0]
    largest = np.empty(permutations)
    with progress("Shuffling labels", permutations, "shuffles") as bar:
        for some in blocks(permutations, WORKING_SIZE // units):
            shuffled = statistics(draw(rng, len(largest[some])))
            largest[some] = shuffled.max(axis=1)
            bar.update(len(shuffled))
    return permutation_p_values(observed, largest)
