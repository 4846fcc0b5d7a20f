"""Effects of replacing activations by values without information about the prompt."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.result import Array, Table, takes
from palinka.analyses.stats.effects import (
    Cells,
    EffectArguments,
    Effects,
    as_table,
    by_component,
    cluster_means,
    kept_prompts,
    measure_effects,
    over_clusters,
)


@dataclass(frozen=True)
class Ablation(Effects):
    """Effects of ablation; of each component the first axis of the cells is the value.

    Attributes:
        difference: Effect with the first value minus that with the cell's own, `(cells,)`, such as
            zero minus mean; `None` for one value, and NaN for the first.
        difference_p: Two-sided p-values of the differences by sign flips of whole clusters.
        difference_p_corrected: The same, corrected for all cells by the maximum.
        direct_effect: Part of the effect that goes straight to the logits, `(cells, prompts)`.
        indirect_effect: The effect minus the direct effect, `(cells, prompts)`, through later
            components; where its sign is opposite to that of the direct effect, it is self-repair.
        new_top: Tokens that are the prediction of some prompts with the ablation alone, with their
            `count`, by cell, the most frequent first.
    """

    share = "{:z.0%} of the gap left"
    difference: Array | None = None
    difference_p: Array | None = None
    difference_p_corrected: Array | None = None
    direct_effect: Array | None = None
    indirect_effect: Array | None = None
    new_top: tuple[Mapping[str, Any], ...] = ()

    def tables(self) -> dict[str, Table]:
        """The table `cells`, with mean direct and indirect effects, and `new_top`, if known."""
        table = dict(super().tables()["cells"])
        for name in ("direct_effect", "indirect_effect"):
            if (values := getattr(self, name)) is not None:
                table[name] = cluster_means(values, np.array(self.cluster)).mean(axis=1)
        return {"cells": table} | ({"new_top": as_table(self.new_top)} if self.new_top else {})


@takes("effects of ablation")
def ablation(
    patched: Cells, clean: ArrayLike, corrupted: ArrayLike | None = None,
    direct: Cells | None = None, top: Cells | None = None, clean_top: ArrayLike | None = None,
    **options: Unpack[EffectArguments],
) -> Ablation:  # fmt: skip
    """Measure the effect of ablating each cell of clean prompts, by one or several values.

    An effect is the outcome with the ablation minus that of the clean run, and understates what
    the cell does where later components make up for it. What is left of the gap to the corrupted
    prompts is the recovery, 1 where nothing is lost. Tests and intervals are those of
    `activation_patching`; all values are corrected together.

    Args:
        patched: Outcomes of the ablated runs, `(values, layers, heads, prompts)` or cells of other
            axes after the first, or a mapping of components to such arrays.
        clean: Outcomes of the clean runs, `(prompts,)`; 0 for a divergence from them.
        corrupted: Outcomes of the corrupted runs, `(prompts,)`; without, there is no recovery.
        direct: Direct effects, in the shape of `patched`: the change of the outcome by the
            component's own write, with the scale of the final norm frozen.
        top: The most probable tokens with the ablation, in the shape of `patched`; `""` if unknown.
        clean_top: The most probable tokens of the clean runs, `(prompts,)`.
        **options: Those of `activation_patching`.

    Source:
        McGrath et al. (2023) and Rushing & Nanda (2024) for self-repair.
    """
    names = ("value", "layer", "head")
    units = "texts" if corrupted is None else "templates"
    measured = measure_effects(patched, clean, corrupted, names=names, units=units, **options)
    effects, cluster = Effects(**measured), np.array(measured["cluster"])
    every = effects.maps(effects.effects).values()
    if any(len(each) > 1 for each in every):
        pairs = np.concatenate([(e[:1] - e).reshape(-1, effects.prompts) for e in every])
        second = np.concatenate([np.arange(len(e)).repeat(e[0, ..., 0].size) for e in every]) > 0
        test: Any = {k: options[k] for k in ("permutations", "seed") if k in options}
        found = over_clusters(pairs[second], cluster, resamples=0, **test)
        for end, values in (("", found.mean), ("_p", found.p), ("_p_corrected", found.p_corrected)):
            measured[f"difference{end}"] = np.full(len(pairs), np.nan)
            measured[f"difference{end}"][second] = values
    kept = kept_prompts(clean, corrupted, options)

    def by_cell(cells: Cells) -> NDArray[Any]:
        """Values of all cells, `(cells, prompts)`, of the prompts that count."""
        given, shape = by_component(cells), (-1, np.size(clean))
        return np.concatenate([np.reshape(given[name], shape) for name in effects.axes])[:, kept]

    if direct is not None:
        measured["direct_effect"] = by_cell(direct)
        measured["indirect_effect"] = effects.effects - measured["direct_effect"]
    if top is not None:
        others = np.asarray(clean_top)[kept]
        measured["new_top"] = tuple(
            cell | {"token": token, "count": count}
            for cell, own in zip(effects.cells(), by_cell(top), strict=True)
            for token, count in Counter(own[(own != others) & (own != "")].tolist()).most_common()
        )
    return Ablation(**measured)
