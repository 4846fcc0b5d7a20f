"""Predictions of a model's layers."""

from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.result import Array, Result, Table, takes
from palinka.analyses.stats.effects import MIN_CLUSTERS, ClusterOptions, over_clusters

# What is averaged over tokens; `target_top1` is the share of them whose target is most probable.
MEASURES = ("target_log_probability", "target_top1", "target_rank", "entropy", "kl_to_final")


@dataclass(frozen=True)
class LogitLens(Result):
    """Predictions of every layer, from the first block's input to the model's own.

    Attributes:
        target_log_probability: Log probability of the target in nats, `(layers + 1, tokens)`.
        target_rank: Number of tokens with a larger logit, 0 for the most probable one.
        entropy: Entropy of the prediction in nats.
        kl_to_final: KL divergence of the prediction from the model's own, in nats.
        top_ids: Ids of the most probable tokens, `(layers + 1, tokens, k)`.
        top_probability: Their probabilities.
        layer_of_first_top1: First row in which the target is most probable, `(tokens,)`; -1 if it
            is in none.
        means: Means over clusters of `MEASURES`, `(measures, layers + 1)`.
        means_low: Lower bounds of their bootstrap intervals over clusters.
        means_high: The upper bounds.
        change: Mean change of the target's log probability by each block, `(layers,)`.
        p: Two-sided p-values of the changes, by sign flips of whole clusters.
        p_corrected: The same, corrected for all blocks by the maximum.
        tokens: Number of tokens.
        clusters: Number of clusters, the unit of inference.
        level: Coverage of the intervals.
    """

    scalar_units: ClassVar = {"final_log_probability": "nats", "largest_change": "nats"}

    target_log_probability: Array
    target_rank: Array
    entropy: Array
    kl_to_final: Array
    top_ids: NDArray[np.int64]
    top_probability: Array
    layer_of_first_top1: NDArray[np.int64]
    means: Array
    means_low: Array
    means_high: Array
    change: Array
    p: Array
    p_corrected: Array
    tokens: int
    clusters: int
    level: float

    def scalars(self) -> dict[str, float]:
        """Numbers of the model's own prediction, and the block with the largest change."""
        block, first = int(np.abs(self.change).argmax()), self.layer_of_first_top1
        numbers = {"final_log_probability": self.means[0, -1], "final_top1": self.means[1, -1]}
        numbers["layer_of_first_top1"] = np.median(np.where(first < 0, np.inf, first))
        numbers |= {"largest_change": self.change[block], "largest_change_block": block}
        numbers |= {"largest_change_p_value": self.p_corrected[block], "tokens": self.tokens}
        numbers["texts_or_templates"] = self.clusters
        return {name: float(value) for name, value in numbers.items() if np.isfinite(value)}

    def tables(self) -> dict[str, Table]:
        """The table `layers`, with a row for each layer; changes are those by the block before."""
        table: Table = {"layer": range(self.means.shape[1])}
        for index, name in enumerate(MEASURES):
            bounds = self.means_low[index], self.means_high[index]
            table |= {name: self.means[index], f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
        changes = {"change": self.change, "p": self.p, "p_corrected": self.p_corrected}
        return {"layers": table | {n: np.append(np.nan, v) for n, v in changes.items()}}


@takes("predictions of layers")
def logit_lens(
    target_log_probability: ArrayLike, target_rank: ArrayLike, entropy: ArrayLike,
    kl_to_final: ArrayLike, top_ids: ArrayLike, top_probability: ArrayLike,
    clusters: ArrayLike | None = None, **options: Unpack[ClusterOptions],
) -> LogitLens:  # fmt: skip
    """Average what every layer predicts, with tests of the change by each block.

    The lens takes a state of the residual stream through the final norm and the unembedding, as if
    the blocks after it were left out. It shows what can be read off in the output's own basis: a
    layer without the answer may hold it in another one. Tokens of one text, and prompts of one
    template, are alike: values are averaged within such a cluster first.

    Args:
        target_log_probability: Log probabilities of the right token in nats, `(layers + 1, tokens)`
            from the first block's input to the last one's output.
        target_rank: Numbers of tokens with a larger logit.
        entropy: Entropies of the predictions in nats.
        kl_to_final: KL divergences of the predictions from the model's own, in nats.
        top_ids: Ids of the most probable tokens, `(layers + 1, tokens, k)`, the first one first.
        top_probability: Their probabilities.
        clusters: Text or template of each token, `(tokens,)`; default one of its own.
        **options: Level, permutations, resamples and seed, as for `activation_patching`.

    Source:
        nostalgebraist (2020), interpreting GPT: the logit lens.
    """
    given = {"target_log_probability": target_log_probability, "target_rank": target_rank}
    given |= {"entropy": entropy, "kl_to_final": kl_to_final}
    values = {name: np.asarray(each, np.float64) for name, each in given.items()}
    top1 = values["target_rank"] == 0
    tokens = top1.shape[1]
    cluster = np.arange(tokens) if clusters is None else np.asarray(clusters)
    every = np.stack([{**values, "target_top1": top1}[name] for name in MEASURES])
    means = over_clusters(every, cluster, **options | {"permutations": 0})
    count, permutations = len(np.unique(cluster)), options.get("permutations", 1000)
    needed = f"no p-values: a test needs at least {MIN_CLUSTERS} texts or templates, given {count}"
    notes = (needed,) * (count < MIN_CLUSTERS and permutations > 0)
    tested: Any = {**options, "resamples": 0, "permutations": permutations * (not notes)}
    change = over_clusters(np.diff(every[0], axis=0), cluster, **tested)
    return LogitLens(
        **values, top_ids=np.asarray(top_ids), top_probability=np.asarray(top_probability, float),
        layer_of_first_top1=np.where(top1.any(axis=0), top1.argmax(axis=0), -1),
        means=means.mean, means_low=means.low, means_high=means.high, change=change.mean,
        p=change.p, p_corrected=change.p_corrected, tokens=tokens, clusters=count,
        level=options.get("level", 0.95), notes=notes,
    )  # fmt: skip
