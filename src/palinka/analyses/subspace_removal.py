"""Effects of removing subspaces, against controls that remove as much variance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from palinka.analyses.result import Array, Result, Table, p_text, takes
from palinka.analyses.stats.effects import bootstrap_ratios, cluster_means
from palinka.analyses.stats.permutation import permutation_p_values


@dataclass(frozen=True)
class SubspaceRemoval(Result):
    """Effects of removing the first components of a basis at each site.

    Attributes:
        effect: Outcome without the subspace minus with it, mean over clusters, `(sites, ranks)`.
        effect_low: Lower bound of its bootstrap interval over clusters.
        effect_high: The upper bound.
        kl: Divergence in nats of the prediction from that with the subspace, mean over clusters.
        variance_removed: Share of the variance of the reference in the subspace.
        null_low: Lower end of the middle part of the controls' effects,
            `(controls, sites, ranks)`.
        null_high: The upper end.
        p: Two-sided p-values against each control, `(controls, sites, ranks)`.
        p_corrected: The same for the largest |z| of all sites and ranks; equal where there is one.
        control_effect: Effects of the controls, `(controls, sites, ranks, draws)`.
        control_variance: Share of variance that they remove, in the same shape.
        ranks: Numbers of components.
        sites: Names of the sites.
        controls: Names of the controls.
        level: Coverage of the intervals.
        prompts: Number of prompts.
        clusters: Number of clusters, which are resampled.
        outcome: Name of the outcome.
    """

    effect: Array
    effect_low: Array
    effect_high: Array
    kl: Array
    variance_removed: Array
    null_low: Array
    null_high: Array
    p: Array
    p_corrected: Array
    control_effect: Array
    control_variance: Array
    ranks: tuple[int, ...]
    sites: tuple[str, ...]
    controls: tuple[str, ...]
    level: float
    prompts: int
    clusters: int
    outcome: str

    def scalars(self) -> dict[str, float]:
        """Effects with their corrected p-values by site and rank."""
        numbers: dict[str, float] = {}
        for s, site in enumerate(self.sites):
            for r, rank in enumerate(self.ranks):
                at = f"{site}/rank_{rank}"
                numbers[f"{at}/effect"] = self.effect[s, r]
                numbers[f"{at}/variance_removed"] = self.variance_removed[s, r]
                for control, p in zip(self.controls, self.p_corrected[:, s, r], strict=True):
                    numbers[f"{at}/{control}_p_value"] = p
        return {name: float(value) for name, value in numbers.items()}

    def tables(self) -> dict[str, Table]:
        """The table `subspaces`, a row for each site and rank."""
        names = ("effect", "effect_low", "effect_high", "kl", "variance_removed")
        table: Table = {
            "site": np.repeat(self.sites, len(self.ranks)),
            "rank": np.tile(self.ranks, len(self.sites)),
        }
        table |= {name: getattr(self, name).ravel() for name in names}
        for end, values in (("", self.p), ("_corrected", self.p_corrected)):
            for control, p in zip(self.controls, values, strict=True):
                table[f"p_{control}{end}"] = p.ravel()
        return {"subspaces": table}

    def headline(self, units: str, conditions: Sequence[str]) -> str:
        """The largest effect, with its corrected p-value against the first controls."""
        s, r = np.unravel_index(np.abs(self.effect).argmax(), self.effect.shape)
        what = f"without rank {self.ranks[r]} at {self.sites[s]} ({self.variance_removed[s, r]:.0%}"
        changed = f"the {self.outcome.replace('_', ' ')} changes by {self.effect[s, r]:+.3g}"
        control = self.controls[0].replace("matched", "variance-matched")
        p = p_text(self.p_corrected[0, s, r], alpha=round(1.0 - self.level, 12))
        against = f"{p} against {self.control_effect.shape[-1]} {control} controls"
        cells = f", corrected for {self.effect.size} cells" * (self.effect.size > 1)
        return f"{what} of the variance), {changed}, {against}{cells}"


@takes("removals of subspaces")
def subspace_removal(
    removed: ArrayLike,
    clean: ArrayLike,
    controls: Mapping[str, ArrayLike],
    kl: ArrayLike,
    variance_removed: ArrayLike,
    control_variance: Mapping[str, ArrayLike],
    ranks: Sequence[int],
    sites: Sequence[str],
    clusters: ArrayLike | None = None,
    outcome: str = "logit_difference",
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> SubspaceRemoval:
    """Measure what removing a subspace does, beyond the variance that goes with it.

    A subspace of much variance matters whatever it stands for. The p-value of a rank at a site is
    `(1 + #{|effect of a control| >= |effect|}) / (draws + 1)`, each by itself. To correct them,
    effects are standardized over the sets of a rank at a site, and the largest |z| of each draw is
    the null.

    Args:
        removed: Outcomes without the subspace, `(sites, ranks, prompts)`.
        clean: Outcomes with it, `(prompts,)`.
        controls: By name outcomes without other subspaces, `(sites, ranks, draws, prompts)`.
        kl: Divergences of the predictions, `(sites, ranks, prompts)`.
        variance_removed: Share of the variance in the subspace, `(sites, ranks)`.
        control_variance: That of the controls, `(sites, ranks, draws)`.
        ranks: Numbers of components.
        sites: Names of the sites.
        clusters: Template of each prompt, `(prompts,)`; default one of its own.
        outcome: Name of the outcome.
        level: Coverage of the intervals.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of the resamples.
    """
    before = np.asarray(clean, float)
    cluster = np.arange(len(before)) if clusters is None else np.asarray(clusters)
    means = cluster_means(np.asarray(removed, float) - before, cluster)
    count, shape = means.shape[-1], means.shape[:-1]
    bounds = bootstrap_ratios(means.reshape(-1, count), np.ones(count), level, resamples, seed)
    random = np.array([np.asarray(values, float) for values in controls.values()]) - before
    null, effect = cluster_means(random, cluster).mean(axis=-1), means.mean(axis=-1)
    low, high = np.quantile(null, [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=-1)
    as_large = np.abs(null) >= np.abs(effect)[..., None] * (1.0 - 1e-10)
    p = (1.0 + as_large.sum(axis=-1)) / (null.shape[-1] + 1.0)
    share = np.asarray(variance_removed, float)
    matched = np.asarray(control_variance.get("matched", share[..., None]))
    off = np.abs(matched / share[..., None] - 1)
    note = f"{(off > 0.05).mean():.0%} of the matched controls are off by over 5 % of the variance"
    return SubspaceRemoval(
        effect=effect, effect_low=bounds[0].reshape(shape), effect_high=bounds[1].reshape(shape),
        kl=cluster_means(np.asarray(kl, float), cluster).mean(axis=-1), variance_removed=share,
        null_low=low, null_high=high, p=p,
        p_corrected=_corrected(p, effect, null),
        control_effect=null, control_variance=np.array([control_variance[n] for n in controls]),
        ranks=tuple(ranks), sites=tuple(sites), controls=tuple(controls), level=level,
        prompts=len(before), clusters=count, outcome=outcome,
        notes=(note,) * bool((off > 0.05).any()),
    )  # fmt: skip


def _corrected(p: Array, effect: Array, null: Array) -> Array:
    """P-values by the largest |z| of all cells; `null` is `(controls, sites, ranks, draws)`.

    Source:
        Westfall & Young (1993).
    """
    if effect.size == 1:
        return p
    own = np.broadcast_to(effect, null.shape[:-1])[..., None]
    sets = np.concatenate([own, null], axis=-1)
    spread = sets.std(axis=-1, keepdims=True)
    z = np.abs(sets - sets.mean(axis=-1, keepdims=True)) / np.where(spread, spread, 1.0)
    corrected = [permutation_p_values(each[..., 0], each[..., 1:].max((0, 1))) for each in z]
    return np.maximum(p, corrected)
