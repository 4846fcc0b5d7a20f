"""k-sparse probes, and the area under the ROC curve with its error over groups."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.result import Array, Mask, Result, as_matrix
from palinka.analyses.stats.compiled import one_blas_thread, threads
from palinka.analyses.stats.latents import auc_of_ranks, column_ranks
from palinka.analyses.stats.permutation import chunks
from palinka.errors import InputError, did_you_mean
from palinka.interventions.logistic import logistic_path

Rule = Literal["mean_difference", "t", "f", "auc", "first"]
KS = (1, 2, 5, 16, 128)
PENALTIES: Array = np.logspace(5, -5, 10)[::-1]
FOLDS = 4
# The search for a penalty ends where the log-loss is larger than its least by this factor.
GIVE_UP = 1.2
# Of weights in the folds; the error of the log-loss is about its square.
FOLD_TOLERANCE = 1e-4
CHUNK_COLUMNS = 4096


@dataclass(frozen=True)
class ClusteredAUC:
    """An area under the ROC curve and the contribution of each group, `(groups,)`, to it.

    The sum of the squares of the contributions is the variance of the value.
    """

    value: float
    influence: Array


def clustered_auc(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike) -> ClusteredAUC:
    """AUC of scores as a detector of true labels, ties one half, with its error over groups.

    The contribution of a row is `(F₀(s) - AUC) / π₁ n` for a positive one and
    `(1 - F₁(s) - AUC) / π₀ n` for a negative one, with `F₀` and `F₁` the shares of negative and of
    positive scores below `s`. Rows of one group are not independent: theirs are added up.

    Args:
        scores: `(rows,)`.
        labels: True for positive rows, `(rows,)`; both kinds are needed.
        groups: Group of each row, `(rows,)`; the contributions are in their order.

    Source:
        DeLong, DeLong & Clarke-Pearson (1988); Obuchowski (1997) for groups.
    """
    s, y = np.asarray(scores, np.float64), np.asarray(labels, bool)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    if not 0 < y.sum() < len(y):
        raise InputError(f"{y.sum()} of {len(y)} labels are true; an AUC needs both kinds")
    wins = share_below(s[~y], s[y])
    auc = float(wins.mean())
    influence = np.empty(len(s))
    influence[y] = (wins - auc) / y.sum()
    influence[~y] = (1.0 - share_below(s[y], s[~y]) - auc) / (~y).sum()
    return ClusteredAUC(auc, np.bincount(group, influence).astype(np.float64))


def share_below(reference: Array, values: Array) -> Array:
    """Share of a reference below each value, equal ones one half, in the shape of the values."""
    ordered = np.sort(reference)
    sides = [np.searchsorted(ordered, values, side=side) for side in ("left", "right")]
    return np.asarray((sides[0] + sides[1]) / (2.0 * len(reference)))


def deal_groups(
    labels: NDArray[Any], groups: NDArray[Any], parts: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Deal whole groups into parts at random, stratified by labels: the part of each row.

    Groups are ordered by their numbers of positive and of all rows; of each `parts` neighbors one
    goes to each part.
    """
    _, group = np.unique(groups, return_inverse=True)
    sizes, positive = np.bincount(group), np.bincount(group, labels)
    order = np.lexsort((random.random(len(sizes)), sizes, positive))
    dealt = np.tile(np.arange(parts), (-(-len(sizes) // parts), 1))
    part = np.empty(len(sizes), np.int64)
    part[order] = random.permuted(dealt, axis=1).ravel()[: len(sizes)]
    return part[group]


def selection_scores(x: NDArray[Any], labels: Mask, rule: Rule) -> Array:
    """Association of each column with the labels, `(columns,)`; -inf for constant columns.

    `mean_difference` is the difference of means over the mean size of what is not zero, `t` and
    `f` are those of Welch and of a pooled variance, `auc` the distance of the AUC from one half,
    and `first` prefers columns of lower numbers.
    """
    found = np.empty(x.shape[1])
    for some in chunks(x.shape[1], CHUNK_COLUMNS):
        part = x[:, some].astype(np.float64)
        sides, sizes = (part[labels], part[~labels]), (labels.sum(), (~labels).sum())
        difference = np.abs(sides[0].mean(axis=0) - sides[1].mean(axis=0))
        with np.errstate(divide="ignore", invalid="ignore"):
            if rule == "mean_difference":
                score = difference / (np.abs(part).sum(axis=0) / (part != 0).sum(axis=0))
            elif rule == "auc":
                score = np.abs(auc_of_ranks(column_ranks(part), labels[None])[0] - 0.5)
            elif rule == "first":
                score = -np.arange(some.start, some.stop, dtype=np.float64)
            else:
                squares = [side.var(axis=0) * len(side) for side in sides]
                pooled = (squares[0] + squares[1]) / (len(part) - 2) * sum(1 / n for n in sizes)
                welch = sum(q / (n * (n - 1)) for q, n in zip(squares, sizes, strict=True))
                score = difference / np.sqrt(welch if rule == "t" else pooled)
        found[some] = np.where(part.min(axis=0) == part.max(axis=0), -np.inf, score)
    return found


@dataclass(frozen=True)
class SparseProbe(Result):
    """Scores of probes on few columns, each the mean over the test halves.

    Attributes:
        ks: Number of columns of each probe.
        auc: Area under the ROC curve, `(ks,)`.
        accuracy: Share of right labels at a probability of one half, `(ks,)`.
        log_loss: Mean log-loss, `(ks,)`.
        influence: Contribution of each group in each half to the AUC, `(ks, halves * groups)`, in
            the order of the groups; its variance is the sum of their squares.
        chosen: Columns in order of selection, `(halves, columns)`; -1 where there are no more.
        penalty: The chosen `C`, `(halves, ks)`.
    """

    ks: tuple[int, ...]
    auc: Array
    accuracy: Array
    log_loss: Array
    influence: Array
    chosen: NDArray[np.int64]
    penalty: Array

    @property
    def error(self) -> Array:
        """Standard error of each AUC, `(ks,)`."""
        return np.asarray(np.sqrt(np.square(self.influence).sum(axis=1)))


def sparse_probe(
    x: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None, ks: Sequence[int] = KS,
    rule: Rule = "mean_difference", pca: bool = False, halves: int = 5, seed: int = 0,
) -> SparseProbe:  # fmt: skip
    """Probe the `k` columns that tell two labels apart best, by logistic regression.

    Whole groups are divided into halves for training and test, several times. Within a training
    half columns are selected, scaled by their deviation, and `C` is chosen by the log-loss in 4
    folds of whole groups; of equal ones the smaller. The halves depend on labels, groups and seed
    alone, so that the contributions of two probes are paired.

    Two random halves share half of their test rows: with `R` halves the squared error of the mean
    AUC is `1/R + (1 - 1/R)/2` of the mean squared error of one. It is that of probes that are
    trained on half of the rows.

    Args:
        x: Activations, `(rows, columns)`.
        labels: True for positive rows, `(rows,)`.
        groups: Group of each row, such as its document; default a group for each row.
        ks: Numbers of columns; probes of more than there are use all.
        rule: How columns are selected, as in `selection_scores`.
        pca: Replace the columns by the principal components of the training half.
        halves: Number of divisions.
        seed: Seed of the divisions.

    Source:
        Gurnee et al. (2023), Finding neurons in a haystack, arXiv 2305.01610, for sparse probes;
        Nadeau & Bengio (2003) for divisions that overlap.
    """
    matrix, y = as_matrix(x, "x"), np.asarray(labels, bool)
    if rule not in (rules := get_args(Rule)):
        raise InputError(f"selection is {rule!r}{did_you_mean(str(rule), rules)}")
    if not ks or min(ks) < 1:
        raise InputError(f"k is {list(ks)}; give numbers of columns, at least 1")
    names, group = np.unique(
        np.arange(len(y)) if groups is None else np.asarray(groups), return_inverse=True
    )
    if min(y.sum(), (~y).sum()) < 2 * FOLDS or len(names) < 2 * FOLDS:
        given = f"{y.sum()} positives and {(~y).sum()} negatives in {len(names)} groups"
        raise InputError(f"{given}; a probe needs at least {2 * FOLDS} of each")
    random = np.random.default_rng(seed)
    tests = [deal_groups(y, group, 2, random) == 1 for _ in range(halves)]
    probe = partial(_probe_half, matrix, y, group, tuple(ks), rule, pca)
    seeds = random.integers(2**32, size=halves).tolist()
    workers = ThreadPoolExecutor(min(threads(), halves))
    with one_blas_thread(), workers as pool:
        found = list(pool.map(probe, tests, seeds))
    # By half, in which alone the contributions of two probes are those of the same test.
    influence = np.zeros((len(ks), halves, len(names)))
    for at, (test, half) in enumerate(zip(tests, found, strict=True)):
        influence[:, at, np.unique(group[test])] = half[1]
    total = influence.reshape(len(ks), -1) * np.sqrt((1.0 + 1.0 / halves) / 2.0 / halves)
    chosen = np.full((halves, max(len(half[2]) for half in found)), -1)
    for at, half in enumerate(found):
        chosen[at, : len(half[2])] = half[2]
    penalty = np.array([half[3] for half in found])
    auc, accuracy, loss = np.mean([half[0] for half in found], axis=0)
    return SparseProbe(tuple(ks), auc, accuracy, loss, total, chosen, penalty)


def _probe_half(
    x: NDArray[Any], y: Mask, group: NDArray[Any], ks: tuple[int, ...], rule: Rule, pca: bool,
    test: Mask, seed: int,
) -> tuple[Array, Array, NDArray[np.int64], list[float]]:  # fmt: skip
    """Scores, contributions of the test groups, columns and penalties of probes of one half."""
    train = ~test
    folds = deal_groups(y[train], group[train], FOLDS, np.random.default_rng(seed))
    if pca:
        x = _principal_components(x, train)
    score = selection_scores(x[train], y[train], rule)
    order = np.argsort(-score, kind="stable")[: max(ks)]
    order = order[score[order] > -np.inf]
    scores, influence, penalties = np.empty((3, len(ks))), [], []
    for at, k in enumerate(ks):
        rows = _scaled(x.take(order[:k], axis=1).astype(np.float64), train)
        w, c = _fit(rows[train], y[train], folds)
        margin = rows[test] @ w
        auc = clustered_auc(margin, y[test], group[test])
        loss = np.logaddexp(0.0, np.where(y[test], -margin, margin)).mean()
        scores[:, at] = auc.value, ((margin > 0) == y[test]).mean(), loss
        influence.append(auc.influence)
        penalties.append(c)
    return scores, np.array(influence), order, penalties


def _scaled(x: Array, train: Mask) -> Array:
    """Columns over their deviation in training, and a last column of 1.

    The free bias takes up what centering would change, so that zeros stay zeros. Rows of more
    columns than training rows are turned into the span of those, which changes no prediction.
    """
    x = x / x[train].std(axis=0)
    if x.shape[1] > train.sum():
        x = x @ np.linalg.svd(x[train], full_matrices=False)[2].T
    return np.column_stack([x, np.ones(len(x))])


def _principal_components(x: NDArray[Any], train: Mask) -> Array:
    """Components of all rows, `(rows, components)`, largest first, of the training covariance."""
    centered = x.astype(np.float64) - x[train].mean(axis=0, dtype=np.float64)
    if x.shape[1] > train.sum():
        axes = np.linalg.svd(centered[train], full_matrices=False)[2].T
    else:
        axes = np.linalg.eigh(centered[train].T @ centered[train])[1][:, ::-1]
    return np.asarray(centered @ axes)


def _fit(x: Array, y: Mask, folds: NDArray[np.int64]) -> tuple[Array, float]:
    """Weights of all rows at the penalty of the least log-loss in the folds, and that penalty."""
    start, tests = np.zeros(x.shape[1]), [folds == fold for fold in range(FOLDS)]
    paths = [logistic_path(x[~own], y[~own], PENALTIES, start, None, FOLD_TOLERANCE)
             for own in tests]  # fmt: skip
    least, best, signs = np.inf, PENALTIES[0], np.where(y, -1.0, 1.0)
    for c, *weights in zip(PENALTIES, *paths, strict=True):
        margins = [x[own] @ w * signs[own] for own, w in zip(tests, weights, strict=True)]
        loss = float(np.logaddexp(0.0, np.concatenate(margins)).sum())
        if loss < least:
            least, best, start = loss, c, np.mean(weights, axis=0)
        elif loss > GIVE_UP * least:
            break
    return next(logistic_path(x, y, [best], start)), float(best)
