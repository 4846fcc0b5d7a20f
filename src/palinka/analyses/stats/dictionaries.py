"""Dictionaries compared with each other, over seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

from palinka.analyses.result import Array, Mask, Result, as_matrix, scaled
from palinka.analyses.stats.bootstrap import Interval, share_interval
from palinka.analyses.stats.permutation import chunks
from palinka.errors import InputError, track

BLOCK_ROWS = 2048  # of one matrix product: 200 MB of cosines with 24,576 others
MAX_CANDIDATES = 64  # pairs above the floor per latent, on average
MAX_FREE_PAIRS = 1 << 20  # that any floor may leave
SAMPLED_ROWS = 256  # from which the number of pairs above a floor, and its null, are estimated
LEAST_FLOOR = 0.1
NULL_SHARE = 0.01  # of latents that are matched at `LatentStability.threshold` by chance

Rows = NDArray[np.float32]
Draw = Callable[[Rows, np.random.Generator], Rows]


def unit_rows(x: ArrayLike, name: str = "the dictionary") -> Rows:
    """Directions, `(latents, width)`, scaled to norm 1 in float32; zeros stay zeros."""
    rows = scaled(as_matrix(x, name), axis=1).astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return np.asarray(unit, np.float32)


@dataclass(frozen=True)
class Matching(Result):
    """Latents of one dictionary and their one-to-one partners in another."""

    partner: NDArray[np.int64]  # latent of the other dictionary, (latents,); -1 for none
    cosine: Rows  # signed, with it, (latents,); NaN for none
    best: Rows  # largest cosine with any latent of the other, (latents,), not one to one
    best_back: Rows  # the same of each latent of the other
    floor: float | None  # least cosine of a pair; None if all are assigned


def match_latents(a: ArrayLike, b: ArrayLike, floor: float | None = None) -> Matching:
    """Match directions, `(latents, width)` each, one to one by their signed cosines.

    Without a floor the sum of the cosines of all pairs is the largest possible, for some thousand
    latents; memory grows with the product of their numbers. With a floor the sum of
    `max(cosine, floor)` is: latents are left without a partner rather than paired below it. It is
    as exact, for pairs below the floor are interchangeable, and fast where few pairs exceed it.

    Source:
        Karp (1980) and Jonker & Volgenant (1987) for the sparse assignment, as in SciPy.
    """
    first, second = unit_rows(a, "a"), unit_rows(b, "b")
    if floor is None:
        from scipy.optimize import linear_sum_assignment

        whole = first @ second.T
        best, best_back = whole.max(axis=1), whole.max(axis=0)
        rows, columns = linear_sum_assignment(whole, maximize=True)
        cosines = whole[rows, columns]
    else:
        if floor > 1.0:
            raise InputError(f"stability: floor is {floor:g}; give a cosine, at most 1")
        if floor < (least := _least_floor(first, second)):
            pairs = (_sample(first) @ second.T > floor).mean() * len(first) * len(second)
            fault = f"floor {floor:g} leaves {pairs / 1e6:.3g} million pairs"
            raise InputError(f"stability: {fault}; give at least {np.ceil(100 * least) / 100:g}")
        (rows, columns), cosines, best, best_back = _candidates(first, second, floor)
        chosen = _assign(rows, columns, cosines, floor)
        rows, columns, cosines = rows[chosen], columns[chosen], cosines[chosen]
    partner = np.full(len(first), -1)
    partner[rows] = columns
    cosine = np.full(len(first), np.nan, np.float32)
    cosine[rows] = cosines
    return Matching(partner, cosine, best, best_back, floor)


def _candidates(a: Rows, b: Rows, floor: float) -> tuple[NDArray[np.int64], Rows, Rows, Rows]:
    """Pairs above the floor, `(2, pairs)`, their cosines, and the largest of rows and columns."""
    best, best_back = np.full(len(a), -1.0, np.float32), np.full(len(b), -1.0, np.float32)
    pairs: list[NDArray[np.int64]] = []
    values: list[Rows] = []
    block = np.empty((min(BLOCK_ROWS, len(a)), len(b)), np.float32)
    for part in chunks(len(a), BLOCK_ROWS):
        cosines = np.matmul(a[part], b.T, out=block[: part.stop - part.start])
        cosines.max(axis=1, out=best[part])
        np.maximum(best_back, cosines.max(axis=0), out=best_back)
        above = np.flatnonzero(cosines > floor)
        pairs.append(np.stack(np.divmod(above + part.start * len(b), len(b))))
        values.append(cosines.ravel()[above])
    return np.concatenate(pairs, axis=1), np.concatenate(values), best, best_back


def _assign(
    rows: NDArray[np.int64], columns: NDArray[np.int64], cosines: Rows, floor: float
) -> NDArray[np.int64]:
    """Candidates of the best assignment, in which a row without a partner counts as the floor."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    own, row = np.unique(rows, return_inverse=True)  # those without candidates stay unmatched
    others, column = np.unique(columns, return_inverse=True)
    if len(own) == 0:
        return np.empty(0, np.int64)
    # SciPy needs a full matching, and takes a weight of 0 for no edge: hence a column of its own
    # for every row, and costs of at least 1.
    spare = np.arange(len(own))
    cost = np.concatenate([2.0 - cosines.astype(np.float64), np.full(len(own), 2.0 - floor)])
    places = np.concatenate([row, spare]), np.concatenate([column, len(others) + spare])
    shape = (len(own), len(others) + len(own))
    # By the number of the candidate, from 1 on, to find it again.
    numbers = csr_array((np.arange(1, len(cost) + 1), places), shape=shape)
    graph = csr_array((cost[numbers.data - 1], numbers.indices, numbers.indptr), shape=shape)
    chosen = numbers[min_weight_full_bipartite_matching(graph)] - 1
    return np.asarray(chosen[chosen < len(cosines)])


def _least_floor(a: Rows, b: Rows) -> float:
    """Least floor that leaves `MAX_CANDIDATES` pairs per latent, from a sample of rows."""
    if len(a) * len(b) <= MAX_FREE_PAIRS:
        return -np.inf
    cosines = _sample(a) @ b.T
    above = MAX_CANDIDATES * len(cosines)
    return float(np.partition(cosines, -above, axis=None)[-above]) if above < cosines.size else -1.0


def _sample(rows: Rows) -> Rows:
    return np.asarray(rows[np.linspace(0, len(rows) - 1, min(SAMPLED_ROWS, len(rows))).astype(int)])


@dataclass(frozen=True)
class LatentStability(Result):
    """Latents that reappear in dictionaries of other seeds.

    The estimates with 95 % intervals are `share_0.7` and `share`, of latents with a partner of a
    cosine of at least 0.7, and of at least `threshold`; `…_null`, their mean under the null;
    `…_corrected`, `(share - null) / (1 - null)`; and `best_cosine`, the mean over latents of the
    largest one, not one to one, and its `…_null`.
    """

    estimates: Mapping[str, Interval]
    floor: float  # least cosine of partners
    threshold: float  # cosine of the partners that 1 % of latents have under the null
    curve: Array  # share of latents with partners of a cosine of at least 0, .01, …, .99, (points,)
    null: Array  # the same under each draw of the null, (draws, points)
    # For each dictionary the share of the others in which a latent has a partner of at least
    # `threshold`, (latents,), NaN for dead ones; the mean of its largest cosines; its partners, -1
    # for none, and the cosines with them, (latents, dictionaries).
    reappears: Sequence[Array]
    best_cosine: Sequence[Array]
    partner: Sequence[NDArray[np.int64]]
    cosine: Sequence[Rows]


def latent_stability(
    dictionaries: Sequence[ArrayLike], *, alive: Sequence[Mask] | None = None,
    covariance: ArrayLike | None = None, null: Literal["signs", "rotation"] | Draw = "signs",
    floor: float | None = None, draws: int = 20, seed: int = 0,
) -> LatentStability:  # fmt: skip
    """Match every two dictionaries, `(latents, width)` each, beside a null of unrelated ones.

    The interval is over seeds (jackknife), of two dictionaries over latents, given these two.

    Args:
        dictionaries: Decoder directions of one recipe.
        alive: Masks of the latents that fire, `(latents,)` each; the others are left out.
        covariance: Of the activations, `(width, width)`, for the null `signs`.
        null: `signs` flips coordinates of one dictionary in the eigenbasis of the covariance, each
            for all latents together, which keeps its geometry and spectrum; `rotation` rotates it,
            too lenient where activations are anisotropic; a function of the directions and a
            generator returns others.
        floor: Least cosine of partners; default the median of the largest cosines under the null,
            at least 0.1. `threshold` is not below it: above a high quantile too few have a partner
            by chance.
        draws: Draws of the null, of one pair after the other.
        seed: Seed of the draws.

    Source:
        Paulo & Belrose (2025), arXiv 2501.16615, for shares of latents matched over seeds.
    """
    whole = [unit_rows(each) for each in dictionaries]
    axes = np.eye(whole[0].shape[1], dtype=np.float32)
    if null == "signs":
        if covariance is None:
            raise InputError("the null signs needs the covariance of the activations; give it")
        axes = np.linalg.eigh(np.asarray(covariance, np.float64))[1].astype(np.float32)
    draw: Draw = {"signs": _flipped, "rotation": _rotated}[null] if isinstance(null, str) else null
    masks = alive or [np.ones(len(each), bool) for each in whole]
    rows = [each[mask] @ axes for each, mask in zip(whole, masks, strict=True)]
    pairs = list(combinations(range(len(rows)), 2))

    def drawn(number: int) -> tuple[Rows, Rows]:
        i, j = pairs[number % len(pairs)]
        return rows[i], unit_rows(draw(rows[j], np.random.default_rng([seed, number])))

    if floor is None:
        chance = [(_sample(a) @ b.T).max(axis=1) for a, b in map(drawn, range(draws))]
        least = max(_least_floor(rows[i], rows[j]) for i, j in pairs)
        floor = max(LEAST_FLOOR, float(np.median(np.concatenate(chance))), least)
    found = [match_latents(rows[i], rows[j], floor) for i, j in track(pairs, "matching latents")]
    by_chance = [match_latents(*drawn(n), floor) for n in track(range(draws), "matching by chance")]
    sizes = np.array([(len(rows[i]) + len(rows[j])) / 2 for i, j in pairs])
    null_sizes = sizes[np.arange(draws) % len(pairs)]
    matched = np.sort(np.concatenate([each.cosine[each.partner >= 0] for each in by_chance]))
    rank = int(NULL_SHARE * null_sizes.sum())
    threshold = float(matched[-rank]) if 0 < rank <= len(matched) else floor

    def shares(matches: Sequence[Matching], size: Array, at: ArrayLike) -> Array:
        above = [(m.cosine >= np.atleast_1d(at)[:, None]).sum(axis=1) for m in matches]
        return np.asarray(np.array(above) / size[:, None])

    estimates: dict[str, Interval] = {}

    def add(name: str, own: Interval, luck: Array) -> None:
        # The interval of the null is of its mean over draws.
        null, error = float(luck.mean()), float(ndtri(0.975) * luck.std(ddof=1) / np.sqrt(draws))
        value, rest = (own.value - null) / (1.0 - null), 1.0 - null
        low = value - np.hypot(own.value - own.low, error) / rest
        high = min(1.0, value + np.hypot(own.high - own.value, error) / rest)
        estimates[name], estimates[f"{name}_null"] = own, Interval(null, null - error, null + error)
        estimates[f"{name}_corrected"] = Interval(value, float(low), float(high))

    for name, at in (("share_0.7", 0.7), ("share", threshold)):
        values = shares(found, sizes, at)[:, 0]
        own = share_interval(float(values.mean()), jackknife(values, pairs))
        if len(pairs) == 1:
            own = Interval(own.value, *map(float, wilson(own.value * sizes[0], sizes[0])))
        add(name, own, shares(by_chance, null_sizes, at)[:, 0])
    both = [[np.concatenate([m.best, m.best_back]) for m in each] for each in (found, by_chance)]
    means, luck = (np.array([x.mean(dtype=np.float64) for x in each]) for each in both)
    half = jackknife(means, pairs)
    if len(pairs) == 1:
        half = float(ndtri(0.975) * both[0][0].std() / np.sqrt(2.0 * sizes[0]))
    value = float(means.mean())
    add("best_cosine", Interval(value, value - half, value + half), luck)
    partner = [np.full((len(each), len(whole)), -1) for each in whole]
    cosine = [np.full(each.shape, np.nan, np.float32) for each in partner]
    best = [np.full(each.shape, 0.0) for each in partner]
    for (i, j), each in zip(pairs, found, strict=True):
        mine = np.flatnonzero(each.partner >= 0)
        a, b = np.flatnonzero(masks[i])[mine], np.flatnonzero(masks[j])[each.partner[mine]]
        partner[i][a, j], partner[j][b, i] = b, a
        cosine[i][a, j] = cosine[j][b, i] = each.cosine[mine]
        best[i][masks[i], j], best[j][masks[j], i] = each.best, each.best_back
    per_seed = [(x >= threshold).astype(float) for x in cosine], best
    again, mean_best = (
        [
            np.where(m, x.sum(axis=1) / (len(whole) - 1), np.nan)
            for x, m in zip(each, masks, strict=True)
        ]
        for each in per_seed
    )
    points = np.arange(100) / 100.0
    curve, null_curves = (shares(*x, points) for x in ((found, sizes), (by_chance, null_sizes)))
    per_latent = again, mean_best, partner, cosine
    return LatentStability(estimates, floor, threshold, curve.mean(0), null_curves, *per_latent)


def _flipped(rows: Rows, random: np.random.Generator) -> Rows:
    return np.asarray(rows * random.choice(np.array([-1.0, 1.0], np.float32), rows.shape[1]))


def _rotated(rows: Rows, random: np.random.Generator) -> Rows:
    q, r = np.linalg.qr(random.standard_normal((rows.shape[1], rows.shape[1])))
    return np.asarray(rows @ (q * np.sign(np.diag(r))).astype(np.float32))


def jackknife(values: ArrayLike, pairs: Sequence[tuple[int, int]]) -> float:
    """Half-width of the 95 % interval of a mean over pairs of seeds, `(pairs,)`.

    The pairs are not independent: whole seeds are left out. NaN where one seed is in all pairs.

    Source:
        Efron & Stein (1981).
    """
    of, members = np.asarray(values, np.float64), np.asarray(pairs)
    left = [(members != seed).all(axis=1) for seed in np.unique(members)]
    if not all(map(np.any, left)):
        return np.nan
    n, means = len(left), np.array([of[without].mean() for without in left])
    error = np.sqrt((n - 1) / n * np.square(means - means.mean()).sum())
    return float(stdtrit(n - 1, 0.975) * error)


def wilson(count: ArrayLike, n: float) -> tuple[Array, Array]:
    """Bounds of the 95 % interval of a proportion, `count` of `n` (Wilson 1927)."""
    share, z = np.asarray(count, np.float64) / n, float(ndtri(0.975))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


def shared_subspace(dictionaries: Sequence[ArrayLike]) -> tuple[float, Array, list[Array]]:
    """Compare the spans of the main directions of dictionaries, `(latents, width)` each.

    The spans are of the first right singular vectors, as many as the participation ratio of the
    pooled spectrum, rounded up.

    Returns:
        The mean over pairs of the squared cosines of the principal angles, `rank / width` for
        random spans; the cosines, `(pairs, rank)`; and orthonormal rows of each span.
    """
    squares = [x.T @ x for x in (unit_rows(each).astype(np.float64) for each in dictionaries)]
    pooled = np.linalg.eigvalsh(np.sum(squares, axis=0))
    rank = int(np.ceil(pooled.sum() ** 2 / np.square(pooled).sum()))
    rank = min(rank, *(np.linalg.matrix_rank(each) for each in squares))
    spans = [np.linalg.eigh(each)[1][:, -rank:].T for each in squares]
    cosines = principal_cosines(spans)
    return float(np.square(cosines).mean()), cosines, spans


def principal_cosines(spans: Sequence[Array]) -> Array:
    """Cosines of the principal angles of every two spans of orthonormal rows, `(pairs, rank)`."""
    angles = [np.linalg.svd(a @ b.T, compute_uv=False) for a, b in combinations(spans, 2)]
    return np.clip(np.array(angles), 0.0, 1.0)
