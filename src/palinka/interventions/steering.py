"""Runs of steering."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palinka.errors import InputError
from palinka.interventions.directions import (
    Array,
    Texts,
    directions_at,
    median_norm,
    token_vectors,
    windows_of,
)
from palinka.interventions.engine import run
from palinka.interventions.pairs import Pairs
from palinka.interventions.plan import Intervention, Position, Steer
from palinka.interventions.sources import exact
from palinka.interventions.study import Measured, Study
from palinka.language_models import LanguageModel
from palinka.language_models.token_text import token_ids

ALPHAS = (-0.8, -0.4, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
KL_DRAWS = 5  # controls of a kind whose side effect is measured, too
MIN_TEXTS = 20  # of fewer, half of the labels are exchanged in too few ways
LOGITS = 1 << 24  # maximum number of logits of one pass over neutral text


def steering(
    study: Study, *, neutral: str = "", contrast: str = "", probe: bool = False,
    latents: Sequence[int] = (), selection: dict[str, str] | None = None, toward: str = "",
    alphas: Sequence[float] = ALPHAS, positions: Position = "all", draws: int = 50,
    pairs: bool = True, neutral_tokens: int = 256, seed: int = 0,
) -> Iterator[Measured]:  # fmt: skip
    """Add directions to the clean runs at each site, beside controls of equal norm.

    Args:
        study: The model, the prompts, the sites, and the autoencoders of `latents`.
        neutral: Stimuli file of other text, on which the side effect is measured. Strengths are in
            median norms over its tokens.
        contrast: Stimuli file of two conditions of at least 20 texts, others than the prompts: a
            direction is the mean of the second minus that of the first, over the tokens of each
            text but its first.
        probe: Also add the weights of a logistic regression between the conditions.
        latents: Latents whose decoder directions are added.
        selection: A finding of an earlier analysis of other stimuli, with a value per unit, that
            is added as a direction, such as `{analysis: him_her_ged, by: pattern_a}` of a
            generalized eigendecomposition, or its `filter_a`.
        toward: An answer, such as `she`: the outcome is that of this answer in every prompt,
            whichever is right. Default the right one.
        alphas: Strengths, with 0.
        positions: A role, an index, or `all`. Neutral text is steered at all of its tokens.
        draws: Number of controls of each kind: `isotropic`, `covariance`, normal with that of the
            activations, and with `contrast` `shuffled_labels`.
        pairs: Shuffle labels within pairs of texts, the i-th of either condition.
        neutral_tokens: Number of tokens of neutral text, from its conditions by turns.
        seed: Seed of the controls.
    """
    lm, prompts = study.model, _toward(study, toward)
    if not neutral:
        raise InputError("steering needs text for its side effect; give neutral, a stimuli file")
    windows = windows_of(study, neutral, neutral_tokens)
    strengths = np.unique(alphas)
    for site in study.sites:
        rows, random = np.concatenate(token_vectors(lm, site, windows)), np.random.default_rng(seed)
        controls = {
            "isotropic": random.standard_normal((draws, rows.shape[1])),
            "covariance": random.standard_normal((draws, len(rows))) @ (rows - rows.mean(axis=0)),
        }
        given, means = directions_at(study, site, contrast, probe, latents, selection)
        if means is not None:
            controls["shuffled_labels"] = _shuffled(*means, draws, pairs, random)
        if not given:
            raise InputError("steering has no direction; give contrast, latents or selection")
        kinds = {"steered": np.stack(list(given.values())), **controls}
        pushes = product(torch.as_tensor(np.concatenate(list(kinds.values()))), strengths.tolist())
        plan = [[Intervention(site, Steer(*push), positions)] for push in pushes]
        found = run(lm, prompts, plan, base="clean", metrics=study.metrics, reference=windows)
        scale = median_norm(rows) * strengths[:, None]
        kl = {}
        for name, each in kinds.items():
            some = each[: None if name == "steered" else KL_DRAWS]
            pushed = some / np.linalg.norm(some, axis=1, keepdims=True)
            kl[name] = divergences(lm, site, windows, scale * pushed[:, None])
        for metric in study.metrics:
            parts = np.cumsum([len(each) for each in kinds.values()])[:-1]
            outcomes = found.values[metric].reshape(-1, len(strengths), len(prompts))
            split = dict(zip(kinds, np.split(outcomes, parts), strict=True))
            data: dict[str, Any] = {
                "steered": split.pop("steered"), "controls": split, "alphas": strengths,
                "directions": list(given), "kl": kl["steered"],
                "control_kl": {name: kl[name] for name in split}, **study.data(found, metric),
            }  # fmt: skip
            names = site if len(study.sites) > 1 else "", study.part(metric)
            yield Measured("/".join(filter(None, names)), data, {"at": site})


def _toward(study: Study, answer: str) -> Pairs:
    """The pairs, with one answer in all of them if it is given."""
    pairs = study.prompts
    if not answer:
        return pairs
    wanted = token_ids(study.model.tokenizer, [f" {answer}"])
    both = list(zip(pairs.answers, pairs.wrong, strict=True))
    if unlike := sum(wanted[0] not in (list(a), list(b)) for a, b in both):
        given = f"toward: {answer} is neither the answer nor the wrong one of {unlike} pairs"
        raise InputError(f"{given}; give one of the two answers of the stimuli")
    turned = [(a, b) if list(a) == wanted[0] else (b, a) for a, b in both]
    return replace(pairs, answers=[a for a, _ in turned], wrong=[b for _, b in turned])


def _shuffled(a: Array, b: Array, draws: int, pairs: bool, random: np.random.Generator) -> Array:
    """Differences of means, `(draws, width)`, by labels that agree with half of the true ones.

    Labels that agree with more would make a part of the direction itself, which at equal norm may
    be most of the control.
    """
    if (fewest := min(len(a), len(b))) < MIN_TEXTS:
        given = f"a condition of contrast has {fewest} texts"
        raise InputError(f"{given}; shuffled labels need at least {MIN_TEXTS}: add texts")
    if not pairs:
        return _halved(b, draws, random) - _halved(a, draws, random)
    if len(a) != len(b):
        given = f"the conditions have {len(a)} and {len(b)} texts"
        raise InputError(f"{given}, which do not come in pairs; set pairs: false")
    return _halved(b - a, draws, random)


def _halved(x: Array, draws: int, random: np.random.Generator) -> Array:
    """Mean of rows, half of them, chosen at random, with the sign reversed: `(draws, width)`."""
    signs = np.tile(2.0 * (np.arange(len(x)) % 2) - 1.0, (draws, 1))
    return np.asarray(random.permuted(signs, axis=1) @ x / len(x))


@torch.no_grad()
def divergences(lm: LanguageModel, site: str, texts: Texts, vectors: Array) -> Array:
    """KL(clean ‖ steered) of the predictions at all tokens of texts but the first, in nats.

    Each of the vectors, `(…, width)`, is added at all tokens in a run of its own. Means over the
    tokens of all texts, `(…,)`.
    """
    rows = torch.as_tensor(vectors.reshape(-1, vectors.shape[-1]), device=lm.device)
    total = torch.zeros(len(rows), device=lm.device)
    for text in texts:
        ids = torch.tensor([list(text)], device=lm.device)
        clean, lost = lm.logits(ids)[:, 1:].float().log_softmax(-1), []
        for some in torch.split(rows, max(1, LOGITS // clean.numel())):
            with lm.replaced(site, added(some[:, None])):
                logits = lm.logits(ids.expand(len(some), -1))[:, 1:]
            terms = clean.exp() * (clean - logits.float().log_softmax(-1))
            lost.append(terms.sum((1, 2)))
        total += torch.cat(lost)
    kl = total / sum(len(text) - 1 for text in texts)
    return np.asarray(kl.double().cpu()).reshape(vectors.shape[:-1])


def added(vectors: Tensor) -> Callable[[Tensor], Tensor]:
    """A function for `LanguageModel.replaced` that adds vectors, at all tokens of every pass."""
    return lambda h: (exact(h) + vectors.to(exact(h))).to(h)
