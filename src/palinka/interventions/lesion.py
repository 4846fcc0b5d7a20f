"""Runs of lesions."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import ndtri

from palinka.errors import InputError, checks_strings
from palinka.interventions.directions import output_rows
from palinka.interventions.engine import Bools, Floats, Ints, run
from palinka.interventions.plan import Intervention, Position, named_value
from palinka.interventions.sources import Sources
from palinka.interventions.study import Measured, Study
from palinka.language_models.edits import latents_of
from palinka.language_models.model import Tokens
from palinka.language_models.token_text import token_texts

NEAREST = 20  # a control is one of this many unselected units that are nearest to its selected unit


@checks_strings
def lesion(
    study: Study, *, selection: dict[str, str | int] | None = None,
    holdout: Literal["", "frames"] = "", units: Sequence[int] = (),
    value: Literal["zero", "mean", "median", "resample"] = "zero", positions: str | int = "all",
    draws: int = 200, dose: Sequence[int] = (), preferred: str = "", seed: int = 0,
) -> Iterator[Measured]:  # fmt: skip
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


def _covariates(study: Study, site: str, where: Position) -> Floats:
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


class Matched(NamedTuple):
    """Sets of control units, and how far they are from the selected ones."""

    controls: Ints  # `(draws, k)`; the control of each selected unit, in their order
    # Mean of the selected units minus that of all others, by covariate, in standard deviations of
    # the normal scores over all units
    before: Floats
    after: Floats  # mean of the selected units minus that of their controls in all draws


def normal_scores(values: ArrayLike) -> Floats:
    """Standard normal quantiles of ranks along the last axis, `Φ⁻¹(rank / (n + 1))`.

    Values that agree to 6 decimals are tied, so that norms of 1 up to rounding are.
    """
    from scipy.stats import rankdata  # slow to import

    ranks = rankdata(np.asarray(values).round(6), axis=-1)
    return np.asarray(ndtri(ranks / (ranks.shape[-1] + 1)))


def match_units(
    covariates: ArrayLike, selected: Sequence[int] | Ints, draws: int, seed: int | Sequence[int] = 0
) -> Matched:
    """Draw sets of unselected units that are like the selected ones, unit by unit.

    Covariates, `(covariates, units)`, become normal scores over all units. In each draw the k
    selected units, at most half of all, are visited in random order, and each gets one of the
    `NEAREST` unselected units that are left, at random.

    Source:
        Rosenbaum & Rubin (1985) for matching without replacement and the standardized difference.
    """
    scores, chosen = normal_scores(covariates), np.asarray(selected, np.int64)
    k = len(chosen)
    others = np.setdiff1d(np.arange(scores.shape[1]), chosen)
    distance = np.square(scores[:, chosen, None] - scores[:, None, others]).sum(0)
    distance = distance.round(9)  # quantiles lie on a grid: ties are many, but for their rounding
    # No more can be taken before the last of the k is visited.
    nearest = np.argsort(distance, axis=1, kind="stable")[:, : NEAREST + k - 1]
    random = np.random.default_rng(seed)
    visits = random.permuted(np.tile(np.arange(k), (draws, 1)), axis=1)
    taken, controls = np.zeros((draws, len(others)), bool), np.empty((draws, k), np.int64)
    every = np.arange(draws)
    for step, visited in enumerate(visits.T):
        near = nearest[visited]
        free = ~taken[every[:, None], near]
        nth = random.integers(min(NEAREST, len(others) - step), size=(draws, 1))
        place = ((np.cumsum(free, axis=1) == nth + 1) & free).argmax(1)
        control = near[every, place]
        taken[every, control] = True
        controls[every, visited] = others[control]
    spread = scores.std(axis=1)
    spread[spread == 0] = 1.0
    own = scores[:, chosen].mean(1)
    before = (own - scores[:, others].mean(1)) / spread
    return Matched(controls, before, (own - scores[:, controls].mean((1, 2))) / spread)


def _prefers(study: Study, answer: str) -> Bools | None:
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
