"""Runs of lesions."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.errors import InputError
from palinka.interventions.directions import output_rows
from palinka.interventions.engine import run
from palinka.interventions.matching import match_units
from palinka.interventions.plan import Intervention, Position, named_value
from palinka.interventions.sources import Sources
from palinka.interventions.study import Measured, Study
from palinka.language_models.edits import latents_of
from palinka.language_models.model import Tokens
from palinka.language_models.token_text import token_texts


def lesion(
    study: Study,
    *,
    selection: dict[str, str | int] | None = None,
    holdout: Literal["", "frames"] = "",
    units: Sequence[int] = (),
    value: Literal["zero", "mean", "median", "resample"] = "zero",
    positions: str | int = "all",
    draws: int = 200,
    dose: Sequence[int] = (),
    preferred: str = "",
    seed: int = 0,
) -> Iterator[Measured]:
    """Ablate selected units of clean prompts together, and as many control units in each draw.

    Args:
        study: The model, the prompts, and the sites, each with its own units.
        selection: Units that an earlier analysis found on other prompts, such as `{analysis:
            him_her, by: t, k: 20, side: positive}`.
        holdout: `frames` for an analysis of the same stimuli, which is repeated on the pairs of
            every second template to select units; the others are lesioned.
        units: Or units of one site by number, the strongest first.
        value: What the units become: `zero`, or of the corrupted prompts the `mean`, the `median`
            or another prompt's (`resample`).
        positions: `all` tokens; `before`, the last token, which predicts the answer, for units
            that were selected at such a token, too (`pool: before` of a contrast); or a role, such
            as `target`, whose lesion acts on what follows.
        draws: Number of control sets.
        dose: Numbers of units to lesion, too, the strongest first.
        preferred: The answer that the units prefer, such as `he`: effects on the prompts with
            this answer and on the others are then compared.
        seed: Seed of the control sets.
    """
    if holdout:
        frames = [*dict.fromkeys(study.prompts.templates)]
        if len(frames) < 2:
            given = "lesion: holdout: frames selects units on one template and lesions others"
            raise InputError(f"{given}, and there is 1; add templates, or select on other stimuli")
        odd = [frames.index(name) % 2 == 1 for name in study.prompts.templates]
        assert study.units is not None
        of_even = partial(study.units, holdout=[not each for each in odd])
        study = replace(study, pairs=study.prompts.of(np.flatnonzero(odd)), units=of_even)
    pairs = study.prompts
    k = len(units) or int((selection or {}).get("k", 20))
    doses = sorted({*dose, k})
    where: Position = "end" if positions == "before" else positions
    if (units and len(study.sites) != 1) or bool(units) == bool(selection):
        given = f"units are given for {len(study.sites)} sites" if units else "no units are given"
        raise InputError(f"lesion: {given}; give units of one site, or a selection")
    prefers = _prefers(study, preferred)
    ablated, plan = named_value(value), list[list[Intervention]]()
    chosen = np.full((len(study.sites), k), -1)
    balance = np.full((len(study.sites), 2, 2), np.nan)
    there: list[tuple[int, int]] = []
    for (s, site), (d, size) in product(enumerate(study.sites), enumerate(doses)):
        if d == 0:
            study.check_units(site, units)
            every = np.asarray(units)
            if selection:
                assert study.units is not None
                every = study.units(site, **selection | {"k": doses[-1]})
            covariates = _covariates(study, site, where)
        if size > (most := covariates.shape[1] // 2):
            given = f"lesion: k {size} of {covariates.shape[1]} units"
            raise InputError(f"{given}; at most {most} leave matched controls: select fewer")
        if size > len(every):
            continue
        matched = match_units(covariates, every[:size], draws, [seed, s, size])
        if size == k:
            chosen[s], balance[s] = every[:k], (matched.before, matched.after)
        there.append((s, d))
        dictionary = study.dictionary(site)
        for some in (every[:size], *matched.controls):
            members = tuple(some.tolist())
            plan.append([Intervention(site, ablated, where, members, dictionary)])
    found = run(study.model, pairs, plan, base="clean", metrics=study.metrics)
    for metric in study.metrics:
        lesioned = np.full((len(study.sites), len(doses), 1 + draws, len(pairs)), np.nan)
        rows = found.values[metric].reshape(-1, 1 + draws, len(pairs))
        for place, row in zip(there, rows, strict=True):
            lesioned[place] = row
        data: dict[str, Any] = {
            "lesioned": lesioned, "units": chosen, "doses": doses, "balance": balance,
            "preferred": prefers, "axes": {"": _labels(study.sites)}, **study.data(found, metric),
        }  # fmt: skip
        yield Measured(study.part(metric), data)


def _covariates(study: Study, site: str, where: Position) -> NDArray[np.float64]:
    """Log mean |activation| at the lesioned positions, and log norm of what a unit writes."""
    lm, prompts = study.model, study.prompts
    tokens = Tokens.of(prompts.clean)
    states, mask = lm.read(tokens, site)[site], tokens.mask.bool()
    if (at := Sources(lm, prompts, "clean", None).places(where, "clean")) is not None:
        mask = torch.arange(mask.shape[1]) == torch.as_tensor(at)[:, None]
    acts = states[mask.to(states.device)]
    if (dictionary := study.dictionary(site)) is not None:
        acts = latents_of(dictionary, acts)
        module: Any = getattr(dictionary, "autoencoder", dictionary)
        rows = module.dictionary
    elif (rows := output_rows(lm, site)) is None:  # in the residual stream
        rows = torch.ones(acts.shape[1], 1)
    sizes = acts.abs().double().mean(0) + 1e-8, rows.detach().double().norm(dim=1)
    return torch.stack([size.log().cpu() for size in sizes]).numpy()


def _prefers(study: Study, answer: str) -> NDArray[np.bool_] | None:
    """Mask of the prompts with an answer."""
    if not answer:
        return None
    pairs = study.prompts
    answers = token_texts(study.model.tokenizer, [ids[0] for ids in pairs.answers])
    found = np.array([text.strip() == answer.strip() for text in answers])
    if found.all() or not found.any():
        known = ", ".join(dict.fromkeys(text.strip() for text in answers))
        raise InputError(f"preferred is {answer!r}; give one of several answers: {known}")
    return found


def _labels(sites: Sequence[str]) -> dict[str, list[Any]]:
    """Name and labels of the axis of sites, which are layers where nothing else differs."""
    parts = [re.fullmatch(r"blocks\.(\d+)\.(.+)", site) for site in sites]
    layers = [int(part[1]) for part in parts if part and sites[0].endswith(f".{part[2]}")]
    return {"layer": layers} if len(layers) == len(sites) > 1 else {"site": list(sites)}
