"""Runs of ablation."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from palinka.errors import InputError, checks_strings
from palinka.interventions.engine import Ints, run
from palinka.interventions.lens import TargetTokens, frozen_direction
from palinka.interventions.logit_attribution import functional_at
from palinka.interventions.metrics import TOP
from palinka.interventions.pairs import Pairs
from palinka.interventions.patching import Cells, by_component, cells_of, measured, plan_of
from palinka.interventions.plan import Cell, named_value
from palinka.interventions.study import Measured, Study
from palinka.language_models.token_text import token_texts


@checks_strings
def ablation(
    study: Study, *, components: Sequence[str] = ("attn.out", "mlp.out", "heads"),
    value: str | Sequence[str] = "mean", positions: str | Sequence[str | int] | None = None,
    reference: Literal["stimuli", "template", "text"] = "stimuli", repeats: int = 10, seed: int = 0,
    units: Sequence[int] = (), selection: dict[str, str | int] | None = None,
) -> Iterator[Measured]:  # fmt: skip
    """Replace each cell of each component in the clean runs, and measure the outcomes.

    Stimuli without answers are taken as texts: their outcomes are `kl`, `cross_entropy`,
    `hidden_change` and `cosine`, of all tokens but the first.

    Args:
        study: The model and the prompts, or texts.
        components: Names of components, as `cells_of` has them.
        value: What takes the place of a cell: `zero`, `mean`, `median`, `scalar_mean` or
            `resample`; or several, `[zero, mean]`, which are then compared with the first.
        positions: Roles, such as `[subject, end]`, to ablate one by one; by default all positions
            together, as always for heads, queries, keys, values, neurons and latents.
        reference: Prompts that means and medians are over: the corrupted ones of all `stimuli`,
            those of the same `template`, or the tokens of the same `text`; texts are their own.
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
    plan, metrics, direct = plan_of(maps), list(study.metrics), None
    pairs = study.pairs or Pairs(study.tokens, (), (), (), study.clusters)
    if pairs.answers:
        metrics.append(TOP)
        direct = _DirectEffects(study, plan) if "logit_difference" in metrics else None
    outcomes = run(study.model, pairs, plan, base="clean", metrics=metrics, watch=direct)
    draws = np.array([[cell[0].value.repeats] for cell in plan])
    effects, tops = None, {}
    if pairs.answers:
        ids = np.where(draws == 1, outcomes.values[TOP], -1), outcomes.clean[TOP]
        texts, clean = (_tokens(study.model.tokenizer, each) for each in ids)
        tops = {"top": by_component(texts, maps), "clean_top": clean}
    if direct and not np.isnan(direct.effects).all():
        effects = by_component(direct.effects / draws, maps)
    for each in measured(study, outcomes, maps):
        own = effects if each.data["outcome"] == "logit_difference" else None
        yield Measured(each.part, {**each.data, "direct": own, **tops})


def _tokens(tokenizer: PreTrainedTokenizerBase, ids: NDArray[np.float64]) -> NDArray[np.str_]:
    """Texts of token ids; empty for -1, where draws have several."""
    different, index = np.unique(ids.astype(int), return_inverse=True)
    texts = token_texts(tokenizer, different[different >= 0].tolist())
    return np.array([""] * int((different < 0).sum()) + texts)[index].reshape(ids.shape)


class _DirectEffects:
    """Changes of the logit difference by what cells write, at the clean run's scales of norms.

    `effects`, `(cells, prompts)`, are sums over repeats; NaN where a change was at a site without
    a linear path to the residual stream.
    """

    def __init__(self, study: Study, plan: Sequence[Cell]) -> None:
        model, taps = study.model, study.model.spec.sites.taps
        self.effects = np.zeros((len(plan), len(study.prompts)))
        targets, last = TargetTokens.of(study), f"blocks.{model.spec.sites.layers - 1}.resid"
        normed = [s[:-5] for s in taps if s.endswith(".write") and taps[s] != taps[s[:-5] + "out"]]
        sites = [last, *(f"{part}out" for part in normed)]
        parts = [found for _, found in targets.read(model, sites)]
        acts = {site: torch.cat([found[site] for found in parts]) for site in sites}
        self.stream, _ = frozen_direction(model, acts[last], targets.answers, targets.wrong)
        self.functionals: dict[str, Tensor] = {}
        for site in {re.sub(r"(attn\.\w+)\.\d+$", r"\1", i.site) for cell in plan for i in cell}:
            with suppress(InputError):  # no linear path
                self.functionals[site] = functional_at(model, site, self.stream, acts)

    def __call__(self, site: str, cell: Ints, prompt: Ints, change: Tensor) -> None:
        in_stream = site.startswith("hidden") or site.endswith("resid")
        functional = self.stream if in_stream else self.functionals.get(site)
        if functional is None:
            self.effects[cell, prompt] = np.nan
            return
        own = (change.to(functional) * functional[prompt]).sum(1)
        np.add.at(self.effects, (cell, prompt), own.double().cpu().numpy())
