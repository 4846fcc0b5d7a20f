"""Probing as sae-probes and SAEBench do it, for comparison with published numbers."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from palinka.analyses.result import Array, Mask
from palinka.analyses.stats.compiled import one_blas_thread
from palinka.analyses.stats.probes import FOLD_TOLERANCE, share_below
from palinka.errors import InputError, track
from palinka.evaluation.representations import Encode, read_texts
from palinka.evaluation.tasks import Task
from palinka.evaluation.values import Group, Subject, Value
from palinka.interventions.logistic import logistic_path

Penalty = Literal["l1", "l2"]
PENALTIES: Array = np.logspace(5, -5, 10)
SEED = 42
DEFAULT_KS = {"sae_probes": tuple(2**i for i in range(10)), "saebench": (1, 2, 5)}
REASON = "none: one split, as published"
NOTE = "protocol {}: copies of texts may lie in training and test, and there is no interval"


def split_indices(y: Mask, train: int, test: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw rows for training and for test, half of either positive.

    Source:
        `get_train_test_indices` of sae-probes 0.4.2, with the same draws.
    """
    random = np.random.RandomState(SEED)
    left, found = [np.flatnonzero(y), np.flatnonzero(~y)], []
    for size in (train, test):
        sizes = (-(-size // 2), size // 2)
        if short := [f"{len(p)}" for p, n in zip(left, sizes, strict=True) if len(p) < n]:
            fault = f"{short[0]} rows of a class are left for {size // 2}"
            raise InputError(f"tasks: {fault}; this protocol needs as many rows of either class")
        drawn = [random.choice(p, n, replace=False) for p, n in zip(left, sizes, strict=True)]
        left = [np.setdiff1d(pool, some) for pool, some in zip(left, drawn, strict=True)]
        found.append(np.concatenate(drawn))
    return random.permutation(found[0]), random.permutation(found[1])


def select(x: NDArray[Any], y: Mask, normalize: bool) -> NDArray[np.int64]:
    """Columns by the difference of their means, the largest first.

    Source:
        `get_sorted_indices` of sae-probes, `get_top_k_mean_diff_mask` of SAEBench.
    """
    if normalize:
        used = (x != 0).sum(axis=0) + np.float32(1e-6)
        x = x / (np.abs(x).sum(axis=0) / used + np.float32(1e-6))
    order: NDArray[np.int64] = np.argsort(
        -np.abs(x[y].mean(axis=0) - x[~y].mean(axis=0)), kind="stable"
    )
    return order


def best_regression(
    x: Array, y: Mask, test_x: Array, test_y: Mask, penalty: Penalty = "l2"
) -> dict[str, float]:
    """Scores of the logistic regression whose penalty has the best AUC in validation.

    Source:
        `find_best_reg` of sae-probes 0.4.2; where it stops at a tolerance, this converges.
    """
    scores, w, x = [], np.empty((0, len(PENALTIES))), np.column_stack([x, np.ones(len(x))])
    for train, valid in _splits(y):
        w = _fit(x[train], y[train], PENALTIES, penalty)
        scores.append([_auc(p, y[valid]) for p in expit(x[valid] @ w).T])
    best = int(np.mean(scores, axis=0).argmax())
    w = _fit(x, y, PENALTIES[[best]], penalty, w[:, best])
    probability = expit(test_x @ w[:-1, 0] + w[-1, 0])
    right = (probability > 0.5) == test_y
    f1 = 0.0
    for side in (True, False):
        hits = float((right & (test_y == side)).sum())
        f1 += 2 * hits / (2 * hits + (~right).sum()) * float((test_y == side).mean())
    found = {"test_auc": _auc(probability, test_y), "test_acc": float(right.mean()), "test_f1": f1}
    return {**found, "val_auc": float(np.mean(scores, axis=0)[best]), "C": float(PENALTIES[best])}


def _fit(
    x: Array, y: Mask, penalties: Array, penalty: Penalty, start: Array | None = None
) -> Array:
    """Weights for each penalty in descending order, `(columns, …)`; the last column is all 1.

    With a `start` they are those of the one penalty that was chosen, to 6 digits rather than 4.
    """
    if penalty == "l2":
        tolerance = 1e-6
        if start is None:
            start, tolerance = np.zeros(x.shape[1]), FOLD_TOLERANCE
        path = logistic_path(x, y, penalties[::-1], start, None, tolerance)
        return np.stack([*path][::-1], axis=1)
    if start is not None:
        order = np.random.RandomState(SEED).permutation(len(x))
        x, y = x[order], y[order]
    model = _sklearn("linear_model").LogisticRegression
    settings = {"l1_ratio": 1.0, "solver": "saga", "random_state": SEED, "max_iter": 1000}
    fits = [model(C=c, **settings).fit(x[:, :-1], y) for c in penalties]
    return np.stack([np.append(fit.coef_[0], fit.intercept_) for fit in fits], axis=1)


def _auc(scores: Array, y: Mask) -> float:
    return float(share_below(scores[~y], scores[y]).mean())


def _splits(y: Mask) -> list[tuple[Any, Any]]:
    rows = np.arange(n := len(y))
    if n >= 128:
        return [(slice(cut := n - min(n // 5, 100)), slice(cut, None))]
    selection = _sklearn("model_selection")
    folds = selection.StratifiedKFold(6, shuffle=True, random_state=SEED)
    found = (selection.LeavePOut(2) if n <= 12 else folds).split(rows, y)
    return [(train, valid) for train, valid in found if len({*y[valid].tolist()}) == 2]


def _sklearn(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"sklearn.{module}")
    except ImportError as error:
        needed = "an L1 penalty, and fewer than 128 rows, need scikit-learn"
        raise InputError(f"{needed}: pip install 'palinka[evaluation]'") from error


def published(
    subject: Subject, tasks: Sequence[Task], encoders: Mapping[str, Encode],
    protocol: Literal["sae_probes", "saebench"], ks: Sequence[int], penalty: Penalty,
) -> Group:  # fmt: skip
    """Scores of one split: those of `best_regression`, or SAEBench's accuracy at `C` 1."""
    values, notes = [], [NOTE.format(protocol)]
    bench = protocol == "saebench"
    for task in track(tasks, "Probing", len(tasks)):
        pooling: dict[str, Any] = {"pooling": "mean", "longest": 128, "cut_end": True}
        kept, found = read_texts(
            subject, task, encoders, **pooling if bench else {"pooling": "last", "longest": 1024}
        )
        y = kept.labels
        train = min(len(y) * 4 // 5, 4000) if bench else min(len(y) - 100, 1024)
        test = min(len(y) - train, 1000) if bench else len(y) - train - 1
        rows, others = split_indices(y, train, test)
        with one_blas_thread():
            for name, x in found.latents.items():
                order = select(x[rows], y[rows], normalize=not bench)
                for k in ks:
                    own = x.take(order[:k], axis=1).astype(np.float64)  # rows lie together
                    data = (own[rows], y[rows], own[others], y[others])
                    scores = _accuracy(*data) if bench else best_regression(*data, penalty)
                    values += [
                        Value(metric, name, value, method=REASON, task=task.name, k=k)
                        for metric, value in scores.items()
                    ]
    return Group(values=values, notes=notes)


def _accuracy(x: Array, y: Mask, test_x: Array, test_y: Mask) -> dict[str, float]:
    x = np.column_stack([x, np.ones(len(x))])
    w = _fit(x, y, np.ones(1), "l2", np.zeros(x.shape[1]))[:, 0]
    return {"test_acc": float(((test_x @ w[:-1] + w[-1] > 0) == test_y).mean())}
