"""The generalized eigendecomposition against a plain transcription of its definition.

Run as `python benchmarks/generalized_eigendecomposition.py`; it takes some minutes, nearly all of
them in the plain side.
"""

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from harness import Case, Rival, report
from palinka.analyses.generalized_eigendecomposition import (
    GeneralizedEigendecomposition,
    generalized_eigendecomposition,
)
from palinka.analyses.stats.eigenvalue_null import (
    contrast_scores,
    permutation_null,
    shuffled_eigenvalues,
)

Array = NDArray[np.float64]
ITEMS, WIDTH, PERMUTATIONS = 108, 3072, 1_000
VARIANCE, SHRINKAGE = 99.0, 0.01


def conditions() -> tuple[Array, Array]:
    """Noise with a decaying spectrum, as activations have, and one direction of more variance."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(ITEMS, WIDTH)) * np.linspace(1.0, 0.2, ITEMS)[:, None]
    x = rng.normal(size=(ITEMS, ITEMS)) @ mixing + 0.1 * rng.normal(size=(ITEMS, WIDTH))
    half = ITEMS // 2
    x[:half] += 3.0 * rng.normal(size=(half, 1)) * rng.normal(size=WIDTH)
    return x[:half], x[half:]


def plain_shrinkage(s: Array) -> Array:
    """The definition's, with the eigenvalues whose mean it names."""
    shrunk: Array = (1 - SHRINKAGE) * s + SHRINKAGE * np.linalg.eigvalsh(s).mean() * np.eye(len(s))
    return shrunk


def plain_components(covariance: Array) -> Array:
    """Eigenvectors of the whole `(d, d)` covariance, before the cut."""
    ascending, vectors = scipy.linalg.eigh(covariance)
    values, vectors = ascending[::-1], vectors[:, ::-1]
    shares = 100 * np.cumsum(values) / values.sum()
    kept: Array = vectors[:, : int(np.argmax(shares > VARIANCE))]
    return kept


def plain_decomposition(a: Array, b: Array) -> dict[str, Array]:
    """Steps 1 to 6."""
    v = plain_components((np.cov(a, rowvar=False) + np.cov(b, rowvar=False)) / 2)
    y = np.concatenate([a, b]) @ v
    s_a, s_b = np.cov(y[: len(a)], rowvar=False), np.cov(y[len(a) :], rowvar=False)
    found = {}
    for name, top, bottom in (("a", s_a, s_b), ("b", s_b, s_a)):
        values, filters = scipy.linalg.eigh(top, plain_shrinkage(bottom))
        w = filters[:, -1]
        pattern = v @ plain_shrinkage(top) @ w
        sign = np.sign(pattern[np.abs(pattern).argmax()])
        found[f"eigenvalues_{name}"] = values[::-1]
        found[f"scores_{name}"] = sign * (y @ w)
        found[f"pattern_{name}"] = sign * pattern
    return found


def plain_null(a: Array, b: Array) -> Array:
    """Step 7's null: one label-free basis, then one labeling after the other."""
    contrasts = np.concatenate(
        [
            centered[:-1] - centered[-1] / (np.sqrt(len(centered)) + 1)
            for centered in (a - a.mean(axis=0), b - b.mean(axis=0))
        ]
    )
    return plain_loop(contrasts @ plain_components(contrasts.T @ contrasts), len(a) - 1)


def plain_loop(y: Array, n_a: int) -> Array:
    """The permutations alone, in scores that are given."""
    labels = np.arange(len(y)) < n_a
    null = np.empty((PERMUTATIONS, 2))
    draws = np.random.default_rng(0).permuted(np.tile(labels, (PERMUTATIONS, 1)), axis=1)
    for index, chosen in enumerate(draws):
        s_a, s_b = (plain_shrinkage(z.T @ z / len(z)) for z in (y[chosen], y[~chosen]))
        null[index] = scipy.linalg.eigh(s_a, s_b)[0][-1], scipy.linalg.eigh(s_b, s_a)[0][-1]
    return null


def largest_difference(plain: Array, fast: Array) -> float:
    """Relative to the largest value."""
    return float(np.abs(plain - fast).max() / np.abs(plain).max())


def same_decomposition(plain: dict[str, Array], fast: GeneralizedEigendecomposition) -> str:
    """Every eigenvalue, score and pattern."""
    worst = max(largest_difference(value, getattr(fast, name)) for name, value in plain.items())
    assert worst < 1e-7, worst
    return f"all within {worst:.0e}"


def same_null(plain: Array, fast: tuple[Array, Array]) -> str:
    """Every value of the null, draw by draw."""
    worst = float(np.abs(fast[1] / plain - 1.0).max())
    assert worst < 1e-8, worst
    return f"every value within {worst:.0e}"


def main() -> None:
    """Time the decomposition, the null with its basis, and the permutations alone."""
    a, b = conditions()
    scores = contrast_scores(a, b, VARIANCE)
    report(
        "generalized_eigendecomposition",
        "Generalized eigendecomposition",
        [
            Case(
                f"decomposition of {ITEMS} by {WIDTH:,}",
                ours=lambda: generalized_eigendecomposition(a, b),
                rivals=[
                    Rival(
                        "plain",
                        lambda: plain_decomposition(a, b),
                        check=same_decomposition,
                        at_least=100,
                        warm_up=False,
                    )
                ],
                rounds=3,
                repeats=5,
            ),
            Case(
                f"{PERMUTATIONS:,} permutations, with the principal components",
                ours=lambda: permutation_null(
                    a, b, VARIANCE, SHRINKAGE, PERMUTATIONS, False, seed=0
                ),
                rivals=[
                    Rival(
                        "plain",
                        lambda: plain_null(a, b),
                        check=same_null,
                        at_least=25,
                        warm_up=False,
                    )
                ],
                rounds=3,
            ),
            Case(
                f"{PERMUTATIONS:,} permutations alone, in {scores.shape[1]} components",
                ours=lambda: shuffled_eigenvalues(
                    scores, len(a) - 1, SHRINKAGE, PERMUTATIONS, False, seed=0
                ),
                rivals=[
                    Rival(
                        "plain",
                        lambda: plain_loop(scores, len(a) - 1),
                        check=same_null,
                        at_least=25,
                        warm_up=False,
                    )
                ],
            ),
        ],
        remarks=(
            "Plain: `np.cov` and `scipy.linalg.eigh` on the whole covariance; for the permutations "
            "a loop of `np.cov`, `eigvalsh` for the mean eigenvalue, and `scipy.linalg.eigh` in "
            "either direction. Fast: the components out of the products between items; one "
            "compiled tridiagonalization for both directions, on as many threads as there are "
            "cores. The first call compiles, or loads what was compiled before."
        ),
    )


if __name__ == "__main__":
    main()
