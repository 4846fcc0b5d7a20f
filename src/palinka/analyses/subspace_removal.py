"""Effects of removing subspaces, against controls that remove as much variance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
from numpy.typing import ArrayLike

from palinka.analyses.result import Array, Table, p_text, takes
from palinka.analyses.stats.controls import (
    Controlled,
    controlled_fields,
    corrected_p_values,
    mean_changes,
    set_p_values,
)
from palinka.analyses.stats.effects import ControlledArguments


@dataclass(frozen=True)
class SubspaceRemoval(Controlled):
    """Effects of removing the first components of a basis at each site.

    Effects and divergences are `(sites, ranks)`, p-values `(controls, sites, ranks)`, and effects
    of controls `(controls, sites, ranks, draws)`.

    Attributes:
        variance_removed: Share of the variance of the reference in the subspace.
        null_low: Lower end of the middle part of the controls' effects, `(controls, sites, ranks)`.
        null_high: The upper end.
        p_corrected: P-values by the largest |z| of all sites and ranks; equal where there is one.
        control_variance: Share of variance that controls remove, in the shape of their effects.
        dormant: Share of the subspace of which the block writes nothing to the residual stream:
            effects may come through it alone (Makelov et al., 2023). NaN in the stream.
        ranks: Numbers of components.
        sites: Names of the sites.
    """

    variance_removed: Array
    null_low: Array
    null_high: Array
    p_corrected: Array
    control_variance: Array
    dormant: Array
    ranks: tuple[int, ...]
    sites: tuple[str, ...]

    def scalars(self) -> dict[str, float]:
        """Effects with their corrected p-values by site and rank."""
        numbers: dict[str, float] = {}
        for s, site in enumerate(self.sites):
            for r, rank in enumerate(self.ranks):
                at = f"{site}/rank_{rank}"
                numbers[f"{at}/effect"] = self.effect[s, r]
                numbers[f"{at}/variance_removed"] = self.variance_removed[s, r]
                numbers[f"{at}/dormant"] = self.dormant[s, r]
                for control, p in zip(self.controls, self.p_corrected[:, s, r], strict=True):
                    numbers[f"{at}/{control}_p_value"] = p
        return {name: float(value) for name, value in numbers.items() if not np.isnan(value)}

    def tables(self) -> dict[str, Table]:
        """The table `subspaces`, a row for each site and rank."""
        names = "effect", "effect_low", "effect_high", "kl", "variance_removed", "dormant"
        axes = {"site": self.sites, "rank": self.ranks}
        return {"subspaces": self.table(*names, "p", "p_corrected", **axes)}

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
    removed: ArrayLike, clean: ArrayLike, controls: Mapping[str, ArrayLike], kl: ArrayLike,
    variance_removed: ArrayLike, control_variance: Mapping[str, ArrayLike], ranks: Sequence[int],
    sites: Sequence[str], dormant: ArrayLike | None = None, **options: Unpack[ControlledArguments],
) -> SubspaceRemoval:  # fmt: skip
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
        dormant: Share of the subspace in the null space of the output projection,
            `(sites, ranks)`.
        **options: Clusters and outcome; level, resamples and seed, as for `activation_patching`.
    """
    clusters, level = options.get("clusters"), options.get("level", 0.95)
    changes = mean_changes(removed, clean, clusters)
    fields = controlled_fields(changes, clean, controls, options)
    null, share = fields["control_effect"], np.asarray(variance_removed, float)
    low, high = np.quantile(null, [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=-1)
    own = np.broadcast_to(fields["effect"], null.shape[:-1])[..., None]
    sets = np.concatenate([own, null], axis=-1)
    matched = np.asarray(control_variance.get("matched", share[..., None]))
    off = np.abs(matched / share[..., None] - 1)
    note = f"{(off > 0.05).mean():.0%} of the matched controls are off by over 5 % of the variance"
    fields["notes"] = (note,) * bool((off > 0.05).any()) + fields["notes"]
    return SubspaceRemoval(
        **fields, kl=mean_changes(kl, np.zeros(np.size(clean)), clusters).mean(axis=-1),
        variance_removed=share, null_low=low, null_high=high, p=set_p_values(sets),
        p_corrected=np.array([corrected_p_values(each) for each in sets]),
        control_variance=np.array([control_variance[name] for name in controls]),
        dormant=np.full(share.shape, np.nan if dormant is None else dormant),
        ranks=tuple(ranks), sites=tuple(sites),
    )  # fmt: skip
