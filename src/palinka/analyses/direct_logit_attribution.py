"""Contributions of a model's components to a logit difference."""

from dataclasses import dataclass
from typing import Literal, Unpack

import numpy as np
from numpy.typing import ArrayLike

from palinka.analyses.result import takes
from palinka.analyses.stats.effects import (
    Axes,
    Cells,
    ClusterOptions,
    ClustersBy,
    Effects,
    measure_effects,
)
from palinka.errors import InputError

Unit = Literal["template", "text"]


@dataclass(frozen=True)
class DirectLogitAttribution(Effects):
    """Contributions to the logit difference, `effects`, component by component.

    `gap` and `clean` are the logit difference, `corrupted` is 0, and `recovery` is the share of
    it that a component contributes. `prompts_solved` is the share of tokens where it is positive.
    """

    verb = "contribute to"
    share = "{:z.0%} of the logit difference"

    def named(self) -> list[int]:
        """The three strongest components that are significant, or the strongest."""
        cells, order = self.cells(), sorted(self.strongest(), key=lambda i: -abs(self.effect[i]))
        parts = [i for i in order if cells[i]["component"] != "resid"]  # a sum of the others
        return [i for i in parts if self.significant[i]][:3] or (parts or order)[:1]


@takes("contributions to logits")
def direct_logit_attribution(
    contributions: Cells, logit_difference: ArrayLike, clusters: ArrayLike | None = None,
    axes: Axes | None = None, unit: Unit = "template", *, clusters_by: ClustersBy = "template",
    **options: Unpack[ClusterOptions],
) -> DirectLogitAttribution:  # fmt: skip
    """Measure what each component contributes to the logit difference by the direct path.

    The final norm divides by its scale in that run, so that contributions add up: `embed`,
    `positions`, `attn.out` and `mlp.out` of all layers and `constant`, the biases of the final norm
    and the unembedding, are the logit difference before any softcap of the logits. `attn.out` of a
    layer is the sum of its `heads` and of `attn.bias`, and `resid` is the sum of all that comes
    before a layer, with the constant. A contribution is not an effect: without a component, later
    ones would read another residual stream.

    The test is that of `activation_patching`, by sign flips of whole clusters, corrected for all
    components.

    Args:
        contributions: By component, contributions in logits, `(layers, tokens)`,
            `(layers, heads, tokens)`, or cells of another number of axes.
        logit_difference: Logit of the answer minus that of the wrong one, or the mean over the
            vocabulary, `(tokens,)`.
        clusters: Template or text of each token, `(tokens,)`; default one of its own.
        axes: By component the names of the axes of its cells and the labels of the entries.
        unit: What clusters are: a `"template"` of prompts, or a `"text"` of several tokens.
        clusters_by: `"template"`, or `"prompt"` to take prompts as independent; not for tokens of
            texts, which are alike.
        **options: Level, permutations, resamples and seed, as for `activation_patching`.

    Source:
        Elhage et al. (2021), A mathematical framework for transformer circuits; Wang et al. (2022),
        Interpretability in the wild.
    """
    if unit == "text" and clusters_by == "prompt":
        given = "clusters_by: prompt takes tokens of one text as independent, which they are not"
        raise InputError(f"{given}; leave it out")
    total = np.asarray(logit_difference, dtype=np.float64)
    measured = measure_effects(
        contributions, total, np.zeros(total.shape), clusters, None, axes, direction="denoise",
        clusters_by=clusters_by, only="all", names=("layer", "head"), units=f"{unit}s", **options,
    )  # fmt: skip
    measured["prompts_solved"] = float((total > 0).mean())
    if measured["gap_low"] <= 0.0 <= measured["gap_high"]:
        *notes, _ = measured["notes"]
        zero = "the interval of the logit difference contains 0: shares of it mean nothing"
        measured["notes"] = (*notes, zero)
    return DirectLogitAttribution(**measured)
