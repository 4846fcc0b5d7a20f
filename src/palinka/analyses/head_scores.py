"""Scores of attention heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.result import Array, Mask, Result, Table, p_text, takes
from palinka.analyses.stats.effects import MIN_CLUSTERS, ClusterOptions, over_clusters
from palinka.errors import InputError

# Not shares of attention, of which a head has much or little.
MEASURES = ("entropy", "entropy_normalized", "distance", "distance_variance")
STRONGEST = 10
# Scores that kinds of heads are named after.
NAMED = ("previous_token", "duplicate_token", "induction")
OF_RANDOM_TOKENS = NAMED[1:]


@dataclass(frozen=True)
class HeadScore:
    """One score of every head; arrays are `(layers, heads)`.

    Attributes:
        score: Mean over clusters of texts.
        low: Lower bound of its bootstrap interval over clusters.
        high: The upper bound.
        pooled: Sum over all texts by the number of queries, so that long texts count more.
        reference: Mean over clusters of the same where attention is not about the score.
        p: Two-sided p-values of the difference from the reference, by sign flips of clusters.
        p_corrected: The same, corrected for all heads by the maximum.
        significant: True where the corrected p is at most `1 - level` and the score is higher.
        values: Score in each text, `(layers, heads, texts)`.
    """

    score: Array
    low: Array
    high: Array
    pooled: Array
    reference: Array
    p: Array
    p_corrected: Array
    significant: Mask
    values: Array

    def strongest(self, count: int = STRONGEST) -> list[tuple[int, int]]:
        """Layer and head of the highest scores, highest first."""
        order = np.argsort(-self.score, axis=None, kind="stable")[:count]
        return [divmod(int(at), self.score.shape[1]) for at in order]


@dataclass(frozen=True)
class HeadScores(Result):
    """Scores of every attention head, each over texts.

    Attributes:
        scores: By name.
        level: Coverage of the intervals.
    """

    scores: Mapping[str, HeadScore]
    level: float

    def strongest_heads(self) -> dict[str, tuple[int, int]]:
        """Layer and head of the highest of each share of attention."""
        shares = self.scores.keys() - {*MEASURES}
        return {n: found.strongest(1)[0] for n, found in self.scores.items() if n in shares}

    def scalars(self) -> dict[str, float]:
        """The head with the highest of each share of attention, and the number significant."""
        numbers: dict[str, Any] = {}
        for name, at in self.strongest_heads().items():
            numbers[f"{name}/strongest_layer"], numbers[f"{name}/strongest_head"] = at
            numbers[f"{name}/strongest_score"] = self.scores[name].score[at]
            numbers[f"{name}/heads_significant"] = self.scores[name].significant.sum()
        return {name: float(value) for name, value in numbers.items()}

    def headline(self, units: str, conditions: Sequence[str]) -> str:
        """The highest head of the scores that kinds of heads are named after."""
        named, strongest = [], self.strongest_heads()
        for name in (name for name in NAMED if name in strongest):
            at, found = strongest[name], self.scores[name]
            p = p_text(found.p_corrected[at], alpha=round(1.0 - self.level, 12))
            reference = f"{found.score[at]:.2f} against {found.reference[at]:.2f}"
            named.append(f"{name.replace('_', ' ')} L{at[0]}H{at[1]} {reference}, {p}")
        return f"highest heads (p corrected for all heads): {'; '.join(named)}"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array of every score, by `score/array`."""
        return {
            f"{name}/{field.name}": getattr(found, field.name)
            for name, found in self.scores.items()
            for field in fields(found)
        }

    def tables(self) -> dict[str, Table]:
        """All heads with their scores, and the strongest heads by each score."""
        shape = next(iter(self.scores.values())).score.shape
        layers, heads = (index.ravel() for index in np.indices(shape))
        table: Table = {"layer": layers, "head": heads}
        table |= {name: found.score.ravel() for name, found in self.scores.items()}
        rows = [
            {"by": name, "rank": rank, "layer": at[0], "head": at[1]}
            | {column: array[at] for column, array in vars(found).items() if column != "values"}
            for name, found in self.scores.items()
            for rank, at in enumerate(found.strongest(), 1)
        ]
        strongest: Table = {column: [row[column] for row in rows] for column in rows[0]}
        return {"strongest_heads": strongest, "heads": table}


@takes("attention patterns")
def head_scores(
    sums: Mapping[str, ArrayLike], counts: Mapping[str, ArrayLike],
    reference: Mapping[str, ArrayLike], clusters: ArrayLike | None = None,
    **options: Unpack[ClusterOptions],
) -> HeadScores:  # fmt: skip
    """Describe the attention of every head in texts: where it goes, how far, and how focused.

    With `A[q, k]` the attention of query `q` to key `k` in a text of `T` tokens:

    - `previous_token`: mean of `A[q, q - 1]`, `q >= 1`; `self`: mean of `A[q, q]`, which includes
      `A[0, 0] = 1`; `sink`: mean of `A[q, 0]`, `q >= 1`.
    - `entropy`: mean of `-Σ A ln A` in nats; `entropy_normalized`: of the same over `ln(q + 1)`,
      the largest possible, `q >= 1`.
    - `distance` and `distance_variance`: mean and variance of `q - k`, weighted by `A`.
    - `induction_text`: `A[q, p + 1]` summed over all earlier copies `p` of the token at `q`, values
      below 0.01 left out, over the number of tokens that have an earlier copy.
    - `detect_previous`, `detect_duplicate`, `detect_induction`: the share of all attention that
      goes to the previous token, to earlier copies, and to what follows them.
    - In `S` random tokens, repeated: `duplicate_token`, mean of `A[q, q - S]`, and `induction`,
      mean of `A[q, q - S + 1]`, over the second half.

    A score is compared with that of a head that attends to all tokens up to the query alike;
    `induction` and `duplicate_token` with the same head's in random tokens without repetition.
    Clusters of texts, and sequences of random tokens, are taken to be independent. A score
    describes a head: an effect on the model's predictions is for `ablation` to show.

    Args:
        sums: By name of a score, sums over the queries of each text, `(layers, heads, texts)`.
            `interventions.heads` has all; `distance_squared` is for the variance.
        counts: Number of queries in each text, `(texts,)`; 0 leaves the text out of that score.
        reference: Sums to compare with, `(texts,)` or as `sums`.
        clusters: Template or frame of each text, `(texts,)`; default one of its own.
        **options: Level, permutations, resamples and seed, as for `activation_patching`.

    Source:
        Elhage et al. (2021) and Olsson et al. (2022) for previous-token and induction heads; the
        scores that begin with detect are `detect_head` of TransformerLens.
    """
    notes, scores = [], dict[str, HeadScore]()
    level, permutations = options.get("level", 0.95), options.get("permutations", 1000)
    for name, given in sums.items():
        count = np.asarray(counts[name], np.float64)
        own = clusters is None or name in OF_RANDOM_TOKENS
        cluster = np.arange(len(count)) if own else np.asarray(clusters)
        if permutations and (there := len(np.unique(cluster))) < MIN_CLUSTERS:
            unit = "texts" if there == len(count) else "templates or frames"
            needed = f"a test over {unit} needs at least {MIN_CLUSTERS}"
            advice = f"add {unit}, or set permutations: 0 for no test"
            raise InputError(f"{there} {unit}; {needed}: {advice}")
        (values, pooled), (other, _) = (_means(x, count) for x in (given, reference[name]))
        if name == "distance_squared":
            name, mean = "distance_variance", scores["distance"]
            values, pooled = values - mean.values**2, pooled - mean.pooled**2
            other = other - _means(reference["distance"], count)[0] ** 2
        usable = count > 0
        if not usable.all():
            missing = f"{(~usable).sum()} of {len(count)} texts have no token that it scores"
            notes.append(f"{name}: {missing}; left out")
        if not usable.any():
            continue
        cells, baseline = (x[..., usable] for x in np.broadcast_arrays(values, other))
        enough = len(np.unique(cluster[usable])) >= MIN_CLUSTERS
        tested: Any = {**options, "resamples": 0, "permutations": permutations * enough}
        test = over_clusters(cells - baseline, cluster[usable], **tested)
        found = over_clusters(cells, cluster[usable], **options | {"permutations": 0})
        alike = over_clusters(baseline, cluster[usable], permutations=0, resamples=0).mean
        significant = (found.mean > alike) & (test.p_corrected <= round(1.0 - level, 12))
        scores[name] = HeadScore(
            *found[:3], pooled, alike, test.p, test.p_corrected, significant, values
        )
    return HeadScores(scores, level, notes=tuple(notes))


def _means(sums: ArrayLike, count: Array) -> tuple[Array, Array]:
    """Means over the queries of each text, `(…, texts)`, and over those of all texts, `(…)`."""
    total = np.asarray(sums, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return total / count, total.sum(axis=-1) / count.sum()
