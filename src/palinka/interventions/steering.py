"""Runs of steering, and the directions to steer along."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from palinka.errors import InputError
from palinka.interventions.engine import run
from palinka.interventions.pairs import Pairs
from palinka.interventions.plan import Intervention, Position, Steer
from palinka.interventions.sources import exact
from palinka.interventions.study import Measured, Study
from palinka.language_models import LanguageModel, Tokens
from palinka.language_models.edits import EncodesAndDecodes
from palinka.language_models.token_text import token_ids

Array = NDArray[np.float64]
Texts = Sequence[Sequence[int]]
ALPHAS = (-0.8, -0.4, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
WINDOW = 64  # tokens of neutral text that are read together
KL_DRAWS = 5  # controls of a kind whose side effect is measured, too
MIN_TEXTS = 20  # of fewer, half of the labels are exchanged in too few ways
LOGITS = 1 << 24  # maximum number of logits of one pass over neutral text


def steering(
    study: Study,
    *,
    neutral: str = "",
    contrast: str = "",
    latents: Sequence[int] = (),
    toward: str = "",
    alphas: Sequence[float] = ALPHAS,
    positions: Position = "all",
    draws: int = 50,
    pairs: bool = True,
    neutral_tokens: int = 256,
    seed: int = 0,
) -> Iterator[Measured]:
    """Add directions to the clean runs at each site, beside controls of equal norm.

    Args:
        study: The model, the prompts, the sites, and the autoencoders of `latents`.
        neutral: Stimuli file of other text, on which the side effect is measured. Strengths are in
            median norms over its tokens.
        contrast: Stimuli file of two conditions of at least 20 texts, others than the prompts: a
            direction is the mean of the second minus that of the first, over the tokens of each
            text but its first.
        latents: Latents whose decoder directions are added.
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
    assert study.texts is not None
    if not neutral:
        raise InputError("steering needs text for its side effect; give neutral, a stimuli file")
    cut = [
        [
            text[start : start + WINDOW]
            for text in texts
            for start in range(0, len(text), WINDOW)
            if len(text[start : start + WINDOW]) > 1
        ]
        for texts in study.texts(neutral).values()
    ]
    by_turns = [window for turn in zip_longest(*cut, fillvalue=()) for window in turn if window]
    before = np.cumsum([0, *map(len, by_turns)])[:-1]
    windows = [w for w, n in zip(by_turns, before, strict=True) if n < neutral_tokens]
    strengths = np.unique(alphas)
    for site in study.sites:
        vectors = token_vectors(lm, site, windows)
        rows, random = np.concatenate(vectors), np.random.default_rng(seed)
        given: dict[str, Array] = {}
        controls = {
            "isotropic": random.standard_normal((draws, rows.shape[1])),
            "covariance": random.standard_normal((draws, len(rows))) @ (rows - rows.mean(axis=0)),
        }
        if contrast:
            a, b = contrast_means(lm, site, study.texts(contrast), prompts)
            given["diff_mean"] = b.mean(axis=0) - a.mean(axis=0)
            controls["shuffled_labels"] = _shuffled(a, b, draws, pairs, random)
        if latents:
            written = decoder_rows(study.of_latents(site), latents, lm.width(site))
            given |= {f"latent_{i}": row for i, row in zip(latents, written, strict=True)}
        if not given:
            raise InputError("steering has no direction; give contrast or latents")
        kinds = {"steered": np.stack(list(given.values())), **controls}
        plan = [
            [Intervention(site, Steer(torch.as_tensor(row), float(alpha)), positions)]
            for each in kinds.values()
            for row in each
            for alpha in strengths
        ]
        found = run(lm, prompts, plan, base="clean", metrics=study.metrics, reference=windows)
        scale = median_norm(rows)
        kl = {
            name: divergences(lm, site, windows, scale * _doses(each[:KL_DRAWS], strengths))
            for name, each in kinds.items()
        }
        for metric in study.metrics:
            parts = np.cumsum([len(each) for each in kinds.values()])[:-1]
            outcomes = found.values[metric].reshape(-1, len(strengths), len(prompts))
            split = dict(zip(kinds, np.split(outcomes, parts), strict=True))
            data: dict[str, Any] = {
                "steered": split.pop("steered"), "controls": split, "clean": found.clean[metric],
                "alphas": strengths, "directions": list(given), "clusters": prompts.templates,
                "kl": kl["steered"], "control_kl": {name: kl[name] for name in split},
                "outcome": metric,
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


def token_vectors(lm: LanguageModel, site: str, texts: Texts) -> list[Array]:
    """Vectors of the tokens of each text, `(tokens, width)`, without the first of several.

    The norm of a first token's is an outlier.
    """
    tokens = Tokens.of(texts)
    found = lm.read(tokens, site)[site].double().cpu().numpy()
    return [x[min(1, n - 1) : n] for x, n in zip(found, tokens.lengths.tolist(), strict=True)]


def median_norm(vectors: Array) -> float:
    """Unit of strengths, of vectors `(vectors, width)`; of an even number, the lower of two."""
    return float(np.quantile(np.linalg.norm(vectors, axis=1), 0.5, method="lower"))


def contrast_means(
    lm: LanguageModel, site: str, texts: Mapping[str, Texts], held_out: Pairs | None = None
) -> tuple[Array, Array]:
    """Mean vector of each text of two conditions, `(texts, width)` of either."""
    if len(texts) != 2:
        raise InputError(
            f"a contrast has two conditions; {len(texts)} are given: {', '.join(texts)}"
        )
    used = [*held_out.clean, *held_out.corrupted] if held_out else []
    prompts = {tuple(ids) for ids in used}
    if any(tuple(text) in prompts for of in texts.values() for text in of):
        raise InputError("a text of contrast is also a prompt; hold it out: give other texts")
    a, b = (
        np.stack([x.mean(axis=0) for x in token_vectors(lm, site, of)]) for of in texts.values()
    )
    return a, b


@torch.no_grad()
def decoder_rows(dictionary: EncodesAndDecodes, latents: Sequence[int], width: int) -> Array:
    """Vectors that latents write per unit, `(latents, width)`, without the decoder's bias."""
    like = next(dictionary.parameters()) if isinstance(dictionary, nn.Module) else torch.zeros(1)
    zeros = torch.zeros_like(dictionary.encode(like.new_zeros(len(latents) + 1, width)))
    if unknown := [latent for latent in latents if not 0 <= latent < zeros.shape[1]]:
        raise InputError(f"latents {unknown} do not exist; expected 0 to {zeros.shape[1] - 1}")
    zeros[range(len(latents)), list(latents)] = 1.0
    written = dictionary.decode(zeros)
    return np.asarray((written[:-1] - written[-1]).double().cpu())


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


def _doses(directions: Array, strengths: Array) -> Array:
    """Directions at norm 1, `(directions, width)`, times strengths: `(…, strengths, width)`."""
    units = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(units[:, None] * strengths[:, None])


@torch.no_grad()
def divergences(lm: LanguageModel, site: str, texts: Texts, vectors: Array) -> Array:
    """KL(clean ‖ steered) of the predictions at all tokens of texts but the first, in nats.

    Args:
        lm: The language model.
        site: Where vectors are added.
        texts: Token ids, two or more each.
        vectors: Vectors that are added at all tokens, each in a run of its own, `(…, width)`.

    Returns:
        Means over the tokens of all texts, `(…,)`.
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
