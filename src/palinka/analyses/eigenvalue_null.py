"""Permutation null of the largest generalized eigenvalues."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.covariance_shrinkage import (
    Shrinkage,
    shrinkage_intensity,
    shrunk,
)
from palinka.analyses.permuted_eigenvalues import permuted_eigenvalues
from palinka.analyses.principal_components import principal_components
from palinka.errors import InputError
from palinka.progress import progress

# Labelings at a time: bounds memory, and moves the bar.
_CHUNK = 32


def label_free_scores(
    a: NDArray[np.float64], b: NDArray[np.float64], variance: float
) -> NDArray[np.float64]:
    """Scores of all items, centered by condition, on their common principal components.

    Args:
        a: `(n_a, d)`.
        b: `(n_b, d)`.
        variance: The components before this cumulative share, in per cent, are kept.

    Returns:
        `(n_a + n_b, r)`, those of A first.

    Raises:
        InputError: If the first component already exceeds `variance`.
    """
    centered = np.concatenate((a - a.mean(axis=0), b - b.mean(axis=0)))
    components = principal_components(centered / np.sqrt(len(centered) - 1))
    scores: NDArray[np.float64] = centered @ components.axes(components.before(variance))
    return scores


def largest_eigenvalues(
    scores: NDArray[np.float64], in_a: NDArray[np.bool_], shrinkage: Shrinkage
) -> NDArray[np.float64]:
    """The plain way, for any shrinkage: `(labelings, 2)`, A over B and B over A."""
    largest = np.empty((len(in_a), 2))
    for index, labels in enumerate(in_a):
        a, b = (
            shrunk(np.cov(part, rowvar=False, ddof=1).reshape(2 * (scores.shape[1],)), intensity)
            for part in (scores[labels], scores[~labels])
            for intensity in (shrinkage_intensity(part, shrinkage),)
        )
        lower = np.linalg.cholesky(b)
        half = np.linalg.solve(lower, a)
        eigenvalues = np.linalg.eigvalsh(np.linalg.solve(lower, half.T))
        largest[index] = eigenvalues[-1], 1.0 / eigenvalues[0]
    return largest


def permutation_null(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    variance: float,
    shrinkage: Shrinkage,
    permutations: int,
    pairs: bool,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Largest eigenvalues under the true labels and under exchanged ones, by one recipe.

    Each condition is centered on its own mean, because a difference of means is not a difference
    of variance. Then labels are exchanged: within pairs (item i of A with item i of B, each pair
    swapped with probability 1/2), or over all items. Apart from the means the recipe does not use
    the true labels: principal components of all centered items, the same cut, the covariances of
    both groups about their own means, both shrunk.

    Args:
        a: `(n_a, d)`.
        b: `(n_b, d)`.
        variance: The cut of the principal components, in per cent.
        shrinkage: Of both covariances.
        permutations: Number of labelings to draw.
        pairs: Exchange labels within pairs; `n_a` must equal `n_b`.
        seed: Of the draws.

    Returns:
        Observed `(2,)` and null `(permutations, 2)`: A over B, B over A.

    Raises:
        InputError: As `label_free_scores` and `shuffled_eigenvalues` do.
    """
    scores = label_free_scores(a, b, variance)
    return shuffled_eigenvalues(scores, len(a), shrinkage, permutations, pairs, seed)


def shuffled_eigenvalues(
    scores: NDArray[np.float64],
    n_a: int,
    shrinkage: Shrinkage,
    permutations: int,
    pairs: bool,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`permutation_null` of given `label_free_scores`.

    Raises:
        InputError: If, unshrunk, a condition has too few items for its covariance to be regular.
    """
    fewest = min(n_a, len(scores) - n_a)
    if shrinkage == 0 and scores.shape[1] >= fewest:
        raise InputError(
            f"without shrinkage, {scores.shape[1]} principal components need more than "
            f"{fewest} items in each condition; give a shrinkage above 0 or a smaller variance"
        )
    labels = np.arange(len(scores)) < n_a
    rng = np.random.default_rng(seed)
    if pairs:
        kept = rng.random((permutations, n_a)) < 0.5
        shuffled = np.concatenate((kept, ~kept), axis=1)
    else:
        shuffled = rng.permuted(np.tile(labels, (permutations, 1)), axis=1)
    # The true labeling is one of the batch, so that a draw that repeats it is an exact tie.
    in_a = np.concatenate((labels[None], shuffled))
    chunks = [in_a[start : start + _CHUNK] for start in range(0, len(in_a), _CHUNK)]
    parts = []
    with progress("Permuting labels", len(in_a), "labelings") as bar:
        for part in _computed(scores, chunks, shrinkage):
            parts.append(part)
            bar.update(len(part))
    largest = np.concatenate(parts)
    return largest[0], largest[1:]


def _computed(
    scores: NDArray[np.float64], chunks: list[NDArray[np.bool_]], shrinkage: Shrinkage
) -> Iterator[NDArray[np.float64]]:
    """The chunks' eigenvalues in order; compiled code leaves the interpreter to other threads."""
    if isinstance(shrinkage, str):
        yield from (largest_eigenvalues(scores, chunk, shrinkage) for chunk in chunks)
        return
    compute = partial(permuted_eigenvalues, scores, shrinkage=shrinkage)
    executor = ThreadPoolExecutor(min(_cores(), len(chunks)))
    try:
        yield from executor.map(compute, chunks)
    finally:
        executor.shutdown(cancel_futures=True)


def _cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
