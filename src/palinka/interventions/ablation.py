"""Runs of ablation."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from palinka.interventions.cells import Cells, cells_of
from palinka.interventions.engine import Ints, run
from palinka.interventions.lens import TargetTokens, frozen_direction
from palinka.interventions.patching import by_component, measured
from palinka.interventions.plan import named_value
from palinka.interventions.study import Measured, Study
from palinka.language_models.sites import input_rows


def ablation(
    study: Study,
    *,
    components: Sequence[str] = ("attn.out", "mlp.out", "heads"),
    value: str | Sequence[str] = "mean",
    positions: str | Sequence[str | int] | None = None,
    reference: Literal["stimuli", "template", "text"] = "stimuli",
    repeats: int = 10,
    seed: int = 0,
    units: Sequence[int] = (),
    selection: dict[str, str | int] | None = None,
) -> Iterator[Measured]:
    """Replace each cell of each component in the clean runs, and measure the outcomes.

    Args:
        study: The model and the prompts.
        components: Names of components, as `cells_of` has them.
        value: What takes the place of a cell: `zero`, `mean`, `median`, `scalar_mean` or
            `resample`; or several, `[zero, mean]`, which are then compared with the first.
        positions: Roles, such as `[subject, end]`, to ablate one by one; by default all positions
            together, as always for heads, queries, keys, values, neurons and latents.
        reference: Prompts that means and medians are over: the corrupted ones of all `stimuli`,
            those of the same `template`, or the tokens of the same `text`.
        repeats: Number of other prompts that `resample` takes activations from.
        seed: Seed of their choice.
        units: Units of the components `neurons` and `latents`.
        selection: Or units that an earlier analysis found.
    """
    units = study.selected(selection, components, units)
    names = [value] if isinstance(value, str) else list(value)
    values = [named_value(name, reference, repeats, seed) for name in names]
    maps = {}
    for component in components:
        found = [cells_of(study, component, each, positions, 1, units) for each in values]
        cells = [cell for each in found for cell in each.cells]
        maps[component] = Cells({"value": names, **found[0].axes}, cells)
    plan = [cell for each in maps.values() for cell in each.cells]
    direct = _DirectEffects(study, len(plan))
    watch = direct if "logit_difference" in study.metrics else None
    outcomes = run(
        study.model, study.prompts, plan, base="clean", metrics=study.metrics, watch=watch
    )
    draws = np.array([[cell[0].value.draws] for cell in plan])
    for each in measured(study, outcomes, maps):
        known_path = (
            each.data["outcome"] == "logit_difference" and not np.isnan(direct.effects).all()
        )
        effects = by_component(direct.effects / draws, maps) if known_path else None
        yield Measured(each.part, {**each.data, "direct": effects})


class _DirectEffects:
    """Changes of the logit difference by what cells themselves write.

    The scale of the final norm is that of the clean run.

    Attributes:
        effects: `(cells, prompts)`, summed over repeats; NaN where a change was at a site without
            a linear path to the residual stream.
    """

    def __init__(self, study: Study, cells: int) -> None:
        self.model, self.taps = study.model.model, study.model.spec.sites.taps
        self.effects = np.zeros((cells, len(study.prompts)))
        targets, last = TargetTokens.of(study), f"blocks.{study.model.spec.sites.layers - 1}.resid"
        final = torch.cat([found[last] for _, found in targets.read(study.model, [last])])
        self.functional, _ = frozen_direction(study.model, final, targets.answers, targets.wrong)

    def __call__(self, site: str, cell: Ints, prompt: Ints, change: Tensor) -> None:
        module, _, name = site.rpartition(".")
        if name in ("z", "post") and self.taps[f"{module}.write"] == self.taps[f"{module}.out"]:
            projection = self.model.get_submodule(self.taps[site].module)
            change = change @ input_rows(projection).to(change)
        elif name not in ("write", "resid", "resid_mid") and not site.startswith("hidden."):
            self.effects[cell, prompt] = np.nan
            return
        own = (change.to(self.functional) * self.functional[prompt]).sum(1)
        np.add.at(self.effects, (cell, prompt), own.double().cpu().numpy())
