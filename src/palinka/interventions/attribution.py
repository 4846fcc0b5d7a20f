"""Effects of patches to first order, from gradients, and runs that verify some of them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from palinka.errors import InputError, checks_strings
from palinka.interventions.directions import latents_and_slope
from palinka.interventions.engine import Bools, Floats, Ints, Outcomes, run
from palinka.interventions.metrics import METRICS, Targets, find_metrics
from palinka.interventions.pairs import BASES, Direction, Pairs
from palinka.interventions.patching import OF_SITE, by_component, cells_of, measured, plan_of
from palinka.interventions.plan import Cell, Patch
from palinka.interventions.sources import BATCH, Edit, Sources, edits_of, exact, same_length
from palinka.interventions.study import Measured, Study
from palinka.language_models import LanguageModel
from palinka.language_models.edits import latents_of
from palinka.language_models.sites import hook


@checks_strings
def attribution(
    study: Study, *, components: Sequence[str] = ("resid", "attn.out", "mlp.out", "heads"),
    positions: str | Sequence[str | int] = "roles", direction: Direction = "denoise",
    steps: int = 0, verify: int | Literal["all"] = 20, seed: int = 0, units: Sequence[int] = (),
    selection: dict[str, str | int] | None = None,
) -> Iterator[Measured]:  # fmt: skip
    """Estimate the effect of patching each cell from gradients, and measure that of some.

    Args:
        study: The model and the prompts.
        components: As for `patching`.
        positions: As for `patching`.
        direction: As for `patching`; gradients are those of the run that is patched into.
        steps: Number of points between the embeddings of both prompts over which gradients are
            averaged (integrated gradients); 0 for the gradients of the patched run.
        verify: Number of cells with the largest estimates whose patch is run, and of others at
            random; or `all`.
        seed: Seed of the random cells.
        units: Units of the components `neurons` and `latents`; default all.
        selection: Or units that an earlier analysis found.
    """
    units = study.selected(selection, components, units)
    maps = {}
    for name in components:
        own = units
        if name in OF_SITE and not units and len(study.sites) == 1:
            own = range(study.check_units(study.sites[0], (), name == "latents"))
        maps[name] = cells_of(study, name, Patch(), positions, 1, own)
    plan, base = plan_of(maps), BASES[direction]
    given: Any = {"base": base, "metrics": study.metrics}
    found = attribute(study.model, study.prompts, plan, steps=steps, **given)
    ends = getattr(found, base)
    chosen = _to_verify(found, ends, verify, seed)
    runs = run(study.model, study.prompts, [plan[i] for i in chosen], **given)
    for metric, part in zip(study.metrics, measured(study, found, maps), strict=True):
        patched = np.full(found.values[metric].shape, np.nan)
        # An effect is exact beside the base of its own pass.
        effects = runs.values[metric] - getattr(runs, base)[metric]
        patched[chosen] = ends[metric] + effects
        patched[~found.possible.any(axis=1)] = ends[metric]
        data = {"estimated": part.data["patched"], "patched": by_component(patched, maps)}
        yield Measured(part.part, {**part.data, **data, "direction": direction})


def _to_verify(found: Outcomes, ends: Any, verify: int | Literal["all"], seed: int) -> Ints:
    """Cells with the largest estimates by any of the outcomes, and as many at random."""
    possible = np.flatnonzero(found.possible.any(axis=1))
    if verify == "all":
        return possible
    means = (np.abs((v[possible] - ends[name]).mean(axis=1)) for name, v in found.values.items())
    ranked = np.array([possible[np.argsort(-size, kind="stable")] for size in means])
    random = np.random.default_rng(seed).permutation(np.setdiff1d(possible, ranked[:, :verify]))
    return np.union1d(ranked[:, :verify], random[:verify])


@torch.inference_mode(False)
@torch.enable_grad()
def attribute(
    lm: LanguageModel, pairs: Pairs, plan: Sequence[Cell], *,
    base: Literal["corrupted", "clean"] = "corrupted",
    metrics: Sequence[str] = ("logit_difference",), steps: int = 0,
) -> Outcomes:  # fmt: skip
    """Estimate the outcomes of patches, as `run` measures them, by one backward pass for all.

    The effect of a patch is `(h' - h) · dm/dh` to first order, summed over dimensions and
    positions, with the activation `h` of the base run, `h'` that of the other run, and the outcome
    `m`. With latents of an autoencoder, `dm/dh` goes through its decoder.

    With `n` steps of integrated gradients, `dm/dh` is the mean over runs whose embeddings lie
    between those of both prompts, at `(k - 1/2) / n`.

    Source:
        Nanda (2023), attribution patching; Hanna, Pezzelle & Belinkov (2024) for gradients between
        the embeddings of both prompts.
    """
    functions = find_metrics(metrics)
    pairs.check_texts()
    if "rank" in functions:
        known = ", ".join(name for name in METRICS if name != "rank")
        raise InputError(f"rank has no gradient; choose among {known}")
    if "kl" in functions and base == "clean" and not steps:
        fault = "kl has the gradient 0 in the clean run, which direction: noise differentiates"
        raise InputError(f"{fault}; set direction: denoise, or steps: 10")
    other = "clean" if base == "corrupted" else "corrupted"
    sources, shape = Sources(lm, pairs, base), (len(plan), len(pairs))
    parts: dict[Any, list[tuple[int, Edit]]] = {}  # edits of the same units, at other positions
    for c, cell in enumerate(plan):
        for edit in edits_of(sources, cell):
            part = edit.site, edit.given.dictionary, edit.units
            parts.setdefault(part, []).append((c, edit))
    places = {part: np.stack([edit.at for _, edit in some]) for part, some in parts.items()}
    possible: Bools = np.zeros(shape, bool)
    for part, some in parts.items():
        np.logical_or.at(possible, [c for c, _ in some], places[part].any(axis=2))
    sites = {site for site, *_ in parts} | ({"embed"} if steps else set())
    effects = {name: np.zeros(shape) for name in functions}
    every = find_metrics(["logit_difference", *metrics])
    ends: dict[str, dict[str, Floats]] = {
        of: {name: np.zeros(len(pairs)) for name in every} for of in ("clean", "corrupted")
    }
    for members in same_length(pairs.clean, BATCH):
        ids = {of: torch.tensor([sources.ids[of][i] for i in members]) for of in ends}
        with torch.no_grad():
            there, others = _forward(lm, ids[other], sites)
        here, own = _forward(lm, ids[base], sites)
        of_runs: dict[str, Tensor] = {base: own.detach(), other: others}
        answers, wrong = ([given[i] for i in members] for given in (pairs.answers, pairs.wrong))
        targets = Targets.of(answers, wrong, of_runs["clean"])
        for of, name in product(ends, every):
            ends[of][name][members] = every[name](of_runs[of], targets).cpu().numpy()
        gradients: dict[str, dict[str, Any]] = {n: dict.fromkeys(sites, 0.0) for n in functions}
        for step in range(max(1, steps)):
            states, logits = here, own
            if steps:
                shift = (there["embed"] - here["embed"]).detach() * ((step + 0.5) / steps)
                states, logits = _forward(lm, ids[base], sites, shift)
            for name, function in functions.items():
                total = function(logits, targets).sum()
                found = torch.autograd.grad(total, [*states.values()], retain_graph=True)
                for site, gradient in zip(states, found, strict=True):
                    gradients[name][site] += exact(gradient) / max(1, steps)
        for name, by_site in gradients.items():
            products: dict[Any, Floats] = {}  # of all units of a site
            for (site, dictionary, units), some in parts.items():
                if (site, dictionary) not in products:
                    products[site, dictionary] = _products(lm, some[0][1], here, there, by_site)
                chosen = slice(None) if units is None else list(units)
                by_token = products[site, dictionary][..., chosen].sum(axis=-1)
                at = places[site, dictionary, units][:, members, : by_token.shape[1]]
                cells = np.array([c for c, _ in some])[:, None]
                np.add.at(effects[name], (cells, members), np.einsum("pt,cpt->cp", by_token, at))
    values = {name: ends[base][name] + effect for name, effect in effects.items()}
    return Outcomes(ends["clean"], ends["corrupted"], values, possible)


def _forward(
    lm: LanguageModel, ids: Tensor, sites: set[str], shift: Tensor | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Whole tensors at sites, in a graph that begins there, and logits at the last token.

    A part of a tensor, such as the queries, would be a view that the model does not compute with.
    """
    found: dict[str, Tensor] = {}

    def keep(site: str, whole: Tensor) -> None:
        found[site] = whole.requires_grad_()

    with ExitStack() as stack:
        if shift is not None:
            stack.enter_context(hook(lm.model, lm.spec.sites.tap("embed"), shift.add))
        for site in sites:
            stack.enter_context(hook(lm.model, lm.spec.sites.tap(site), partial(keep, site)))
        logits = lm.model(ids.to(lm.device), use_cache=False, logits_to_keep=1).logits[:, -1]
    return found, logits


def _products(
    lm: LanguageModel, edit: Edit, here: dict[str, Tensor], there: dict[str, Tensor], gradients: Any
) -> Floats:
    """Effects of each unit or latent at an edit's site, `(prompts, tokens, units)`."""
    tap, dictionary = lm.spec.sites.tap(edit.site), edit.given.dictionary
    whole = (states[edit.site].detach() for states in (here, there, gradients))
    before, after, gradient = (exact(tap.take(tensor)) for tensor in whole)
    if dictionary is not None:
        after = latents_of(dictionary, after)
        before, gradient = latents_and_slope(dictionary, before, gradient)
    products: Floats = ((after - before) * gradient).detach().double().cpu().numpy()
    return products
