"""Absorption and splitting of a concept that a linear probe reads, such as a letter."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.special import expit

from palinka.analyses.result import Array, Mask
from palinka.interventions.logistic import logistic_path

# Of SAEBench: shares of the projection, cosines of fractions and in full, and numbers of latents.
SILENT, MIN_SHARE, MIN_COSINE, MIN_COSINE_FULL = 1e-8, 0.4, 0.1, 0.025
MOST_OTHERS, MOST_MAIN, F1_GAIN = 3, 10, 0.03
STEPS = 200


class Absorption(NamedTuple):
    """Share of each word's concept that is absorbed, `(words,)`, and words absorbed in full."""

    fraction: Array
    full: Mask


def absorption(
    x: ArrayLike, latents: ArrayLike, decoder: ArrayLike, direction: ArrayLike, main: ArrayLike
) -> Absorption:
    """Measure how much other latents stand in for those of a concept, word by word.

    `a` is the projection of a word on the direction of the concept, `M` the part from the main
    latents, `T` that from the 3 largest others of cosine 0.1 or more. The fraction is 0 where
    `M >= a` or `T < 0.4 a`, 1 where `M <= 0`, and else `q / (q + M)`, `q = min(T, a - M)`. A word
    is absorbed in full where no main latent is active and the largest part is at least `0.4 a`.

    `x` are activations, `(words, width)`, less what the dictionary decodes from no latents, with
    decoder rows, `(latents, width)`, in their unit; `main` are numbers of latents.

    Source:
        Chanin et al. (2024), arXiv 2409.14507; `FeatureAbsorptionCalculator` of SAEBench, which
        takes rows of norm 1.
    """
    rows, z, u = (np.asarray(values, np.float64) for values in (decoder, latents, direction))
    norms, own, u = np.linalg.norm(rows, axis=1), np.asarray(main), u / np.linalg.norm(u)
    along, a = rows @ u, np.asarray(x, np.float64) @ u
    cosines = np.divide(along, norms, out=np.zeros(len(along)), where=norms > 0)
    parts, silent = z * along, (np.abs(z * norms)[:, own] < SILENT).all(axis=1)
    first, largest, most = parts[:, own].sum(axis=1), parts.argmax(axis=1), parts.max(axis=1)
    others = np.where(cosines >= MIN_COSINE, np.maximum(parts, 0.0), 0.0)
    others[:, own] = 0.0
    rest = np.sort(others, axis=1)[:, -MOST_OTHERS:].sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.minimum(rest, a - first)
        none = (first >= a) | (rest / a < MIN_SHARE)
        fraction = np.where(none, 0.0, np.where(first <= 0.0, 1.0, q / (q + first)))
        full = silent & (cosines[largest] >= MIN_COSINE_FULL) & (a >= 0) & (most / a >= MIN_SHARE)
    return Absorption(fraction, full)


def balanced_probe(x: Array, y: Mask, c: float = 1.0) -> Array:
    """Weights and, last, bias of a logistic probe whose two classes weigh the same, as in `x`."""
    scale = x.std(axis=0)
    scale[scale == 0.0] = 1.0
    rows = np.column_stack([x / scale, np.ones(len(x))])
    weights, start = len(y) / (2.0 * np.where(y, y.sum(), (~y).sum())), np.zeros(rows.shape[1])
    w: Array = next(logistic_path(rows, y, [c], start, weights)) / np.append(scale, 1.0)
    return w


def f1_score(predicted: Mask, y: Mask) -> float:
    """Harmonic mean of precision and recall; 0 where neither is above 0."""
    return float(2 * (predicted & y).sum() / max(1, predicted.sum() + y.sum()))


def main_latents(train: Any, labels: Mask, test: Any, right: Mask) -> list[NDArray[np.int64]]:
    """Latents of each concept: more than one where it is split.

    They are those of the `k` largest weights of an L1 probe; `k` grows up to 10 as long as the F1
    of a probe on them exceeds that of one less by 0.03. Latents are `(words, latents)`, labels
    `(words, concepts)`; those of the `test`, `right`, are of other words.

    Source:
        `k_sparse_probing` of SAEBench.
    """
    weights = l1_weights(csr_array(train), labels)[:-1]
    order = np.argsort(-weights, axis=0, kind="stable")[:MOST_MAIN]
    found = []
    for columns, y, true in zip(order.T, labels.T, right.T, strict=True):
        best, count = -np.inf, 0
        for k in range(1, len(columns) + 1):
            w = balanced_probe(train[:, columns[:k]].astype(np.float64), y)
            score = f1_score(test[:, columns[:k]] @ w[:-1] + w[-1] > 0, true)
            if score <= best + F1_GAIN:
                break
            best, count = score, k
        found.append(columns[:count])
    return found


def l1_weights(x: Any, labels: Mask, penalty: float = 0.01, steps: int = STEPS) -> Array:
    """Weights and, last, biases of logistic probes with an L1 penalty, `(columns, labelings)`.

    The two classes weigh the same. `penalty` is a share of the least one at which all weights are
    0. The steps are those of Beck & Teboulle (2009).
    """
    n, y = len(labels), labels.astype(np.float64)
    weight = np.where(labels, (n - y.sum(axis=0)) / y.sum(axis=0), 1.0) / n
    bound = penalty * np.abs(x.T @ (weight * (y - 0.5))).max(axis=0)  # at a bias of 0, the best one
    vector = np.ones((x.shape[1], y.shape[1]))
    for _ in range(20):  # largest curvature by power iteration
        vector = x.T @ (weight * (x @ vector)) + 1e-30
        norm = np.linalg.norm(vector, axis=0)
        vector /= norm
    step = 1.0 / (0.25 * 1.2 * norm + 0.25 * weight.sum(axis=0))
    w = moved = np.zeros((x.shape[1] + 1, y.shape[1]))
    momentum = 1.0
    for _ in range(steps):
        pull = weight * (expit(x @ moved[:-1] + moved[-1]) - y)
        new = moved - step * np.vstack([x.T @ pull, pull.sum(axis=0)])
        new[:-1] = np.sign(new[:-1]) * np.maximum(np.abs(new[:-1]) - step * bound, 0.0)
        following = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        moved = new + (momentum - 1.0) / following * (new - w)
        w, momentum = new, following
    return np.asarray(w)
