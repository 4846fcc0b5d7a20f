"""Columns that are associated with a label, with a bound on false discoveries."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve, cholesky, eigvalsh
from scipy.special import expit, ndtr

from palinka.analyses.result import Array, Mask, Result, as_matrix
from palinka.analyses.stats.absorption import l1_weights
from palinka.analyses.stats.covariance import shrinkage_intensity, shrunk
from palinka.analyses.stats.dictionaries import wilson
from palinka.analyses.stats.permutation import chunks
from palinka.errors import InputError, counted, track
from palinka.interventions.logistic import logistic_path

MAX_CANDIDATES, MIN_ACTIVE, TRUE_LATENTS, LOW_S = 512, 10, 30, 0.1
CHUNK_COLUMNS = 1024
PENALTY = 0.05  # of L1 probes
Statistic = Literal["l2", "l1"]


@dataclass(frozen=True)
class Knockoffs(Result):
    """Columns that add to what all the others tell of a label."""

    chosen: NDArray[np.int64]  # numbers of columns
    candidates: NDArray[np.int64]  # those that could be chosen
    e: Array  # e-value of each candidate, the mean over draws
    w: Array  # importance of each candidate less that of its knockoff, (draws, candidates)
    s: float  # variance that a knockoff does not share; near 0 nothing can be chosen
    fdr: float  # share of false ones among the chosen of simulated labels; NaN without
    valid: bool  # False if that exceeds `q` by more than two standard errors


def benjamini_yekutieli(p: ArrayLike, alpha: float = 0.05) -> Mask:
    """True where a hypothesis is rejected: false discovery rate `alpha` under any dependence.

    Source:
        Benjamini & Yekutieli (2001).
    """
    from scipy.stats import false_discovery_control  # slow to import

    return np.asarray(false_discovery_control(np.asarray(p), method="by") <= alpha)


def mann_whitney(x: ArrayLike, labels: ArrayLike) -> Array:
    """Two-sided p-value of each column, corrected for ties; 1 for constant ones.

    Source:
        Mann & Whitney (1947), by the normal approximation.
    """
    from scipy.stats import mannwhitneyu  # slow to import

    matrix, y = as_matrix(x, "x"), np.asarray(labels, bool)
    p = np.ones(matrix.shape[1])
    for some in chunks(len(p), CHUNK_COLUMNS):
        part = matrix[:, some].astype(np.float64)
        found = mannwhitneyu(part[y], part[~y], axis=0, method="asymptotic").pvalue
        p[some] = np.where(np.ptp(part, axis=0) > 0, found, 1.0)
    return p


def compare_frequencies(active: ArrayLike, labels: ArrayLike) -> tuple[Array, ...]:
    """Compare how often columns, `(rows, columns)`, are active with a label and without.

    Returns:
        The difference of the frequencies, its 95 % interval, and its p-value, `(columns,)` each.

    Source:
        Newcombe (1998), method 10, for the interval; the p-value is of the pooled z test.
    """
    x, y = np.asarray(active, bool), np.asarray(labels, bool)
    n, counts = (y.sum(), (~y).sum()), (x[y].sum(axis=0), x[~y].sum(axis=0))
    a, b = (count / size for count, size in zip(counts, n, strict=True))
    (low_a, high_a), (low_b, high_b) = (wilson(c, size) for c, size in zip(counts, n, strict=True))
    pooled, difference = x.mean(axis=0), a - b
    error = np.sqrt(pooled * (1.0 - pooled) * (1.0 / n[0] + 1.0 / n[1]))
    z = np.divide(difference, error, out=np.zeros(len(error)), where=error > 0)
    low = difference - np.hypot(a - low_a, high_b - b)
    high = difference + np.hypot(high_a - a, b - low_b)
    return difference, low, high, 2.0 * ndtr(-np.abs(z))


def candidates(x: NDArray[Any], most: int = MAX_CANDIDATES) -> NDArray[np.int64]:
    """Columns of the largest sums of squares, in order of number, that 10 rows or more use."""
    energy = np.square(x, dtype=np.float64).sum(axis=0)
    energy[((x != 0).sum(axis=0) < MIN_ACTIVE) | (np.ptp(x, axis=0) == 0)] = -1.0
    order = np.argsort(-energy, kind="stable")[:most]
    return np.sort(order[energy[order] >= 0.0])


def knockoffs(
    x: ArrayLike, y: ArrayLike, q: float = 0.1, draws: int = 31, seed: int = 0,
    simulations: int = 200, statistic: Statistic = "l2",
) -> Knockoffs:  # fmt: skip
    """Choose columns that add to all others, at a false discovery rate of `q`.

    A knockoff of a column is related to the others as the column is, but not to the label; a hit
    is a column that a logistic probe prefers to its knockoff. Draws are combined by e-values. Rows
    have to be independent and columns Gaussian, which latents are not: `valid` is false if on
    labels simulated from 30 columns the rate of single draws is above `q`.

    Args:
        x: Rows, `(rows, columns)`; candidates are the 512 columns of the largest energy.
        y: Labels, `(rows,)`.
        q: The bound on the share of false ones among the chosen.
        draws: Number of draws of knockoffs.
        seed: Seed of the draws.
        simulations: Number of simulated labels; 0 for no check.
        statistic: Penalty of the probes.

    Source:
        Candès, Fan, Janson & Lv (2018) for model-X knockoffs; Ren & Barber (2024) for e-values.
    """
    matrix, labels = as_matrix(x, "x"), np.asarray(y, bool)
    if not 0.0 < q < 1.0:
        raise InputError(f"q is {q:g}; give a share above 0 and below 1")
    if draws < 1 or simulations < 0:
        given = f"draws is {draws} and simulations {simulations}"
        raise InputError(f"{given}; expected at least 1 and at least 0")
    if statistic not in (known := get_args(Statistic)):
        raise InputError(f"statistic is {statistic!r}; expected {' or '.join(known)}")
    if len(labels) != len(matrix):
        raise InputError(f"{len(labels)} labels of {len(matrix)} rows; expected the same number")
    if (fewer := min(labels.sum(), (~labels).sum())) < MIN_ACTIVE:
        raise InputError(
            f"{counted(fewer, 'rows')} of a label; knockoffs need at least {MIN_ACTIVE} of each"
        )
    own = candidates(matrix)
    if not len(own):
        raise InputError(f"no column varies and is active on {MIN_ACTIVE} rows; give more rows")
    part = matrix[:, own].astype(np.float64)
    part = (part - part.mean(axis=0)) / part.std(axis=0)
    random, gaussian = np.random.default_rng(seed), gaussian_knockoffs(part)
    weigh = partial(importance, statistic=statistic)
    w = np.array([
        weigh(part, gaussian.draw(part, random), labels[:, None], random)[:, 0]
        for _ in track(range(draws), "Drawing knockoffs", draws)
    ])  # fmt: skip
    e = np.mean([e_values(one, q / 2.0) for one in w], axis=0)
    chosen, notes = own[e_benjamini_hochberg(e, q)], []
    shares = np.array([np.nan])
    if simulations:
        shares = _false_shares(part, labels, gaussian, q, simulations, random, weigh)
    fdr = float(shares.mean())
    valid = not fdr > q + 2.0 * shares.std() / np.sqrt(len(shares))
    if not valid:
        notes.append(f"knockoffs not valid for these latents: FDR {fdr:.2f} where {q:g} is meant")
    if gaussian.s < LOW_S:
        notes.append(f"s = {gaussian.s:.2g}: knockoffs are too like the latents to find any")
    if not len(chosen):
        least = f"{np.ceil(1 / q):.0f} hits, and {np.ceil(2 / q):.0f} in a draw"
        notes.append(
            f"nothing chosen: at q = {q:g} knockoffs can choose none with fewer than {least}"
        )
    return Knockoffs(chosen, own, e, w, gaussian.s, fdr, valid, notes=tuple(notes))


class GaussianKnockoffs(NamedTuple):
    """Knockoffs of standardized columns, which share all of their variance but `s`."""

    s: float
    keep: Array
    root: Array

    def draw(self, x: Array, random: np.random.Generator) -> Array:
        """Knockoffs of rows, `(rows, columns)`."""
        return np.asarray(x @ self.keep + random.standard_normal(x.shape) @ self.root)


def gaussian_knockoffs(x: Array) -> GaussianKnockoffs:
    """Equicorrelated knockoffs by the covariance of rows, with Ledoit and Wolf's shrinkage."""
    sigma = shrunk(x.T @ x / len(x), shrinkage_intensity(x, "ledoit_wolf"))
    identity, inverse = np.eye(len(sigma)), np.linalg.inv(sigma)
    s = 0.999 * min(1.0, 2.0 * float(eigvalsh(sigma, subset_by_index=[0, 0])[0]))
    root = cholesky(2.0 * s * identity - s**2 * (inverse + inverse.T) / 2.0)
    return GaussianKnockoffs(s, identity - s * inverse, root)


def importance(
    x: Array, copy: Array, labels: Mask, random: np.random.Generator, statistic: Statistic = "l2"
) -> Array:
    """`|β| - |β̃|` of logistic probes on columns and knockoffs, `(columns, labelings)`.

    Each pair is swapped at random, so that its order tells nothing. The ridge probes of all
    `labels`, `(rows, labelings)`, share the bound of their curvature, with `C` one over the
    columns. The penalty of L1 probes is `PENALTY` of the least at which all weights are 0.

    Source:
        Böhning & Lindsay (1988) for the steps.
    """
    columns = x.shape[1]
    swap = random.random((1, columns)) < 0.5
    pairs = np.where(swap, copy, x), np.where(swap, x, copy)
    if statistic == "l1":
        w = l1_weights(np.hstack(pairs), labels, PENALTY)
    else:
        w = _ridge(np.hstack([*pairs, np.ones((len(x), 1))]), labels, 1.0 / columns)
    difference: Array = np.abs(w[:columns]) - np.abs(w[columns:-1])
    return np.asarray(np.where(swap.T, -difference, difference))


def _ridge(both: Array, labels: Mask, c: float) -> Array:
    ridge = np.append(np.ones(both.shape[1] - 1), 1e-9)
    factor = cho_factor(0.25 * c * both.T @ both + np.diag(ridge))
    w = np.zeros((len(ridge), labels.shape[1]))
    for _ in range(100):
        step = cho_solve(factor, c * both.T @ (expit(both @ w) - labels) + ridge[:, None] * w)
        w -= step
        if np.abs(step).max() < 1e-4 * np.abs(w).max():
            break
    return np.asarray(w)


def threshold(w: Array, q: float) -> float:
    """Least `t` with `(1 + #{w <= -t}) / max(1, #{w >= t}) <= q`; infinite if there is none."""
    sizes = np.unique(np.abs(w[w != 0]))
    ascending = np.sort(w)
    above = len(w) - np.searchsorted(ascending, sizes)
    below = np.searchsorted(ascending, -sizes, side="right")
    passed = np.flatnonzero((1 + below) / np.maximum(1, above) <= q)
    return float(sizes[passed[0]]) if len(passed) else np.inf


def e_values(w: Array, q: float) -> Array:
    """`p 1{w >= τ} / (1 + #{w <= -τ})` with the threshold `τ` of `q`."""
    least = threshold(w, q)
    hits = (w >= least).astype(np.float64)
    return np.asarray(len(w) * hits / (1.0 + (w <= -least).sum()))


def e_benjamini_hochberg(e: Array, q: float) -> Mask:
    """True for the `k` largest e-values, with the largest `k` at which all are `p / (q k)`."""
    order = np.argsort(-e, kind="stable")
    passed = np.flatnonzero(e[order] * np.arange(1, len(e) + 1) * q >= len(e) * (1 - 1e-12))
    return np.isin(np.arange(len(e)), order[: passed[-1] + 1 if len(passed) else 0])


def _false_shares(
    x: Array, labels: Mask, gaussian: GaussianKnockoffs, q: float, simulations: int,
    random: np.random.Generator, weigh: Callable[..., Array], draws: int = 8,
) -> Array:  # fmt: skip
    """Share of false ones among the chosen in simulated labels, with one draw for each share."""
    score = weigh(x, np.zeros_like(x), labels[:, None], random)[:, 0]
    true = np.argsort(-score, kind="stable")[:TRUE_LATENTS]
    rows = np.column_stack([x[:, true], np.ones(len(x))])
    fitted = rows @ next(logistic_path(rows, labels, [1.0], np.zeros(rows.shape[1])))
    isfalse, shares = ~np.isin(np.arange(x.shape[1]), true), list[float]()
    for some in np.array_split(np.arange(simulations), min(draws, simulations)):
        simulated = random.random((len(x), len(some))) < expit(fitted)[:, None]
        for w in weigh(x, gaussian.draw(x, random), simulated, random).T:
            hits = w >= threshold(w, q)
            shares.append((hits & isfalse).sum() / max(1, hits.sum()))
    return np.array(shares)
