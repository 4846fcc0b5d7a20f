"""Dictionaries compared with the features that synthetic data is made of.

Latents `z`, `(rows, latents)`, fire where they are not 0, features of strength `s`, `(rows,
features)`, are active above 0. `w` are directions of latents, `(latents, width)`, of any norm, `d`
those of features, `(features, width)`, and `parents` the parent of each feature; -1 for none.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csc_array

from palinka.analyses.result import Array, as_matrix
from palinka.analyses.stats.bootstrap import Ratio
from palinka.analyses.stats.permutation import chunks

RATED = 0.5  # least |cosine| of a latent with the feature that it is said to be
CORRELATED = 10  # features beside the family that a latent is explained with
Features = NDArray[np.int64]


def _absolute_cosines(w: ArrayLike, d: ArrayLike) -> Array:
    def unit(x: ArrayLike) -> Array:
        rows = as_matrix(x, "directions").astype(np.float64)
        return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8))

    return np.asarray(np.abs(unit(w) @ unit(d).T))


def _one_to_one(cosines: Array) -> tuple[Features, Features, Array]:
    """Latents, their features, and cosines of the pairs, whose sum is the largest possible."""
    from scipy.optimize import linear_sum_assignment

    latents, features = linear_sum_assignment(cosines, maximize=True)
    return latents, features, cosines[latents, features]


def mean_correlation_coefficient(w: ArrayLike, d: ArrayLike) -> float:
    """Mean |cosine| of latents with true directions, matched one to one.

    With more latents than directions, random ones already score high.

    Source:
        Song et al. (2025), arXiv 2505.20254, as `sae_lens.synthetic` computes it.
    """
    return float(_one_to_one(_absolute_cosines(w, d))[2].mean())


def feature_uniqueness(w: ArrayLike, d: ArrayLike) -> tuple[float, float]:
    """Distinct nearest true directions of the latents, per latent, and per true direction.

    The first as `sae_lens.synthetic` computes it; the second is their coverage.
    """
    cosines = _absolute_cosines(w, d)
    distinct = len(np.unique(cosines.argmax(axis=1)))
    return distinct / cosines.shape[0], distinct / cosines.shape[1]


def firing_scores(z: ArrayLike, s: ArrayLike, w: ArrayLike, d: ArrayLike) -> dict[str, Ratio]:
    """Score latents as detectors of the true feature whose direction is nearest to theirs.

    Means of `precision`, `recall`, `f1` and `accuracy`, 0 where undefined, over all latents;
    `…_alive` over those that fire, and `…_matched` over one-to-one pairs. Each with the influence
    of the rows, which are taken as independent.

    Source:
        `sae_lens.synthetic`, for the means over all latents.
    """
    fires, active = (csc_array(x) for x in (as_matrix(z, "z") != 0, as_matrix(s, "s") > 0))
    cosines = _absolute_cosines(w, d)
    nearest, alive = cosines.argmax(axis=1), np.flatnonzero(np.diff(fires.indptr))
    latents, features, _ = _one_to_one(cosines)
    pairs = {"": (np.arange(len(nearest)), nearest), "_alive": (alive, nearest[alive])}
    pairs["_matched"] = latents, features
    return {
        name + part: ratio
        for part, (of, feature) in pairs.items()
        for name, ratio in _detection(fires[:, of], active[:, feature]).items()
    }


def _detection(fires: csc_array[Any], active: csc_array[Any]) -> dict[str, Ratio]:
    """Means over columns of scores that are ratios of sums over rows."""
    own, true = fires.astype(np.float64), active.astype(np.float64)
    both, (rows, columns) = own.multiply(true), fires.shape
    if not columns:
        nothing = Ratio(np.nan, np.full(rows, np.nan), np.inf)
        return dict.fromkeys(("precision", "recall", "f1", "accuracy"), nothing)
    parts = {"precision": (both, own), "recall": (both, true), "f1": (2.0 * both, own + true)}
    found = {}
    for name, (above, below) in parts.items():
        total = below.sum(axis=0)
        weight = np.divide(1.0, total, out=np.zeros(columns), where=total > 0)
        score = above.sum(axis=0) * weight
        influence = (above @ weight - below @ (weight * score)) / columns
        found[name] = Ratio(float(score.mean()), influence, np.inf)
    right = 1.0 - (own + true - 2.0 * both).sum(axis=1) / columns
    accuracy = float(right.mean())
    return found | {"accuracy": Ratio(accuracy, (right - accuracy) / rows, np.inf)}


def _main_latents(w: ArrayLike, d: ArrayLike) -> Features:
    """Latent of each feature, one to one, `(features,)`; -1 for a |cosine| below `RATED`."""
    cosines = _absolute_cosines(w, d)
    latents, features, found = _one_to_one(cosines)
    main = np.full(cosines.shape[1], -1)
    main[features[found >= RATED]] = latents[found >= RATED]
    return main


def known_absorption(
    z: ArrayLike, s: ArrayLike, w: ArrayLike, d: ArrayLike, parents: ArrayLike
) -> dict[str, float]:
    """Measure how often children silence the latents of their parents.

    `absorption` is the share of rows without the parent's latent among those with the parent and a
    child, less that among those with the parent alone; `absorbed_by_child` the share of the former
    rows where also the latent of a child fires. Means over the parents with a latent of their own,
    one to one with an |cosine| of at least 0.5; `absorption_rated` is their share.

    Source:
        The effect of Chanin et al. (2024), arXiv 2409.14507, with parents that are known.
    """
    fires, active = as_matrix(z, "z") != 0, as_matrix(s, "s") > 0
    parent, main = np.asarray(parents), _main_latents(w, d)
    rates, candidates = [], np.unique(parent[parent >= 0])
    for one in candidates[main[candidates] >= 0]:
        children = np.flatnonzero(parent == one)
        with_child = active[:, one] & active[:, children].any(axis=1)
        alone = active[:, one] & ~with_child
        if not (with_child.any() and alone.any()):
            continue
        silent = ~fires[:, main[one]]
        by_child = silent & fires[:, main[children[main[children] >= 0]]].any(axis=1)
        difference = silent[with_child].mean() - silent[alone].mean()
        rates.append((difference, by_child[with_child].mean()))
    means = np.mean(rates, axis=0) if rates else (np.nan, np.nan)
    rated = len(rates) / len(candidates) if len(candidates) else np.nan
    names = ("absorption", "absorbed_by_child", "absorption_rated")
    return dict(zip(names, map(float, (*means, rated)), strict=True))


def related_features(s: ArrayLike, parents: ArrayLike) -> list[Features]:
    """Parent, children, siblings and the 10 most correlated features of each feature."""
    x, parent = np.asarray(s, np.float32), np.asarray(parents)
    x = x - x.mean(axis=0)
    x /= np.maximum(np.linalg.norm(x, axis=0), 1e-30)
    most, found = min(CORRELATED, x.shape[1] - 1), []
    for part in chunks(x.shape[1], 1024):
        correlations = np.abs(x[:, part].T @ x)
        for one, row in zip(range(part.start, part.stop), correlations, strict=True):
            row[one] = -1.0
            family = (parent == one) | (parent[one] >= 0) & (parent == parent[one])
            family[np.argsort(-row)[:most]] = True
            if parent[one] >= 0:
                family[parent[one]] = True
            family[one] = False
            found.append(np.flatnonzero(family))
    return found


def hedging(w: ArrayLike, d: ArrayLike, related: Sequence[Features]) -> dict[str, float]:
    """Measure how much of other features' directions the latents contain.

    `hedging` is the norm of the coefficients of the related features over the size of that of the
    latent's own, in least squares of its direction; the mean over the latents that have a feature,
    one to one with an |cosine| of at least 0.5; `hedging_rated` is their share of all pairs.

    Source:
        The effect of Chanin et al. (2025), arXiv 2505.11756, with features that are known.
    """
    rows, true = as_matrix(w, "w").astype(np.float64), as_matrix(d, "d").astype(np.float64)
    main, ratios = _main_latents(w, d), []
    for feature in np.flatnonzero(main >= 0).tolist():
        basis = true[[feature, *related[feature]]].T
        own, *others = np.linalg.lstsq(basis, rows[main[feature]])[0]
        ratios.append(np.linalg.norm(others) / abs(own))
    pairs = min(len(rows), len(true))
    value = float(np.mean(ratios)) if ratios else np.nan
    return {"hedging": value, "hedging_rated": len(ratios) / pairs}
