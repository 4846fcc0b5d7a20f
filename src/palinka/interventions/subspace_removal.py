"""Runs without subspaces."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from palinka.errors import InputError, counted
from palinka.interventions.directions import (
    Array,
    Texts,
    directions_at,
    finding,
    output_rows,
    token_vectors,
    windows_of,
)
from palinka.interventions.engine import run
from palinka.interventions.plan import Intervention, Position, ProjectOut
from palinka.interventions.sources import exact
from palinka.interventions.study import Measured, Study
from palinka.language_models import LanguageModel
from palinka.language_models.token_text import token_bytes

TRIES, TOLERANCE = 100, 0.05


def subspace_removal(
    study: Study, *, ranks: Sequence[int] = (1, 2, 4), contrast: str = "", probe: bool = False,
    latents: Sequence[int] = (), selection: dict[str, str] | None = None, text: str = "",
    text_tokens: int = 128, positions: Position = "all", draws: int = 50, seed: int = 0,
) -> Iterator[Measured]:  # fmt: skip
    """Freeze subspaces of each site at their mean in the clean runs, and measure the outcomes.

    Means, variances and components are over the tokens of the corrupted prompts but the first.

    Args:
        study: The model, the prompts, the sites, and the autoencoders of `latents`.
        ranks: Numbers of components of the basis: principal components by default, or those of
            the directions that are given.
        contrast: Stimuli file of two conditions, other texts than the prompts, for the difference
            of their means.
        probe: Also the weights of a logistic regression between the conditions.
        latents: Latents, for their decoder directions.
        selection: A finding of an earlier analysis of other stimuli, with a value per unit. That
            of a generalized eigendecomposition, `{analysis: him_her_ged, by: pattern_a}`, alone is
            removed along the pattern where the filter reads it, so that what does not vary with
            the component stays.
        text: Stimuli file of text on which the changes of each token's log probability are drawn,
            at the largest rank.
        text_tokens: Number of its tokens.
        positions: A role, an index, or `all`, as always in the text.
        draws: Number of controls of each kind: `matched`, spanned by directions with the
            covariance of the activations, as many as remove the same variance, and `isotropic`.
        seed: Seed of the controls.
    """
    lm, pairs = study.model, study.prompts
    pairs.check_texts()
    plan, variance = list[list[Intervention]](), list[list[float]]()
    dormant, lost = list[float](), dict[str, Array]()
    windows = windows_of(study, text, text_tokens) if text else []
    for site in study.sites:
        rows = np.concatenate(token_vectors(lm, site, pairs.corrupted))
        mean = rows.mean(axis=0)
        dtype = torch.promote_types(lm.model.dtype, torch.float32)
        center = torch.as_tensor(mean, dtype=dtype, device=lm.device)
        _, scale, axes = np.linalg.svd(rows - mean, full_matrices=False)
        rows, random = scale[:, None] * axes, np.random.default_rng(seed)  # of the same covariance
        given, _ = directions_at(study, site, contrast, probe, latents, selection)
        # Of several directions, the long ones are not the main ones.
        basis = np.stack([x / np.linalg.norm(x) for x in given.values()]) if given else rows
        basis = np.linalg.svd(basis, full_matrices=False)[2].T
        filters = None
        if selection and [*given] in (["pattern_a"], ["pattern_b"]):
            by = next(iter(given)).replace("pattern", "filter")
            read = finding(study, site, selection["analysis"], by)
            filters = (read / (read @ basis))[:, None]
        if not 1 <= min(ranks) <= max(ranks) <= basis.shape[1]:
            most = counted(basis.shape[1], "directions")
            few = f"ranks {list(ranks)}, and the basis at {site} has {most}"
            raise InputError(f"{few}; give ranks from 1 to that number")
        for rank in ranks:
            own = basis[:, :rank]
            share = removed_variance(rows, own if filters is None else filters)[-1]
            spaces = [matched(rows, share, random) for _ in range(draws)]
            spaces += list(np.linalg.qr(random.standard_normal((draws, len(own), rank)))[0])
            variance.append([share, *(removed_variance(rows, space)[-1] for space in spaces)])
            values = [ProjectOut(torch.as_tensor(space)) for space in (own, *spaces)]
            if filters is not None:
                values[0] = ProjectOut(values[0].patterns, torch.as_tensor(filters))
            plan += [[Intervention(site, value, positions)] for value in values]
            dormant.append(dormant_share(lm, site, own))
            if text and rank == max(ranks):
                name, frozen = f"{site}, rank {rank}", partial(values[0], source=center)
                lost[name] = lost_log_probability(lm, site, windows, frozen)
    metrics = list(dict.fromkeys([*study.metrics, "kl"]))
    found = run(lm, pairs, plan, base="clean", metrics=metrics)
    cells = len(study.sites), len(ranks), 1 + 2 * draws
    shares = np.reshape(variance, cells)
    kinds = {"matched": slice(1, 1 + draws), "isotropic": slice(1 + draws, None)}
    tokens = token_bytes(lm.tokenizer, [i for window in windows for i in window])
    for metric in study.metrics:
        outcomes = found.values[metric].reshape(*cells, -1)
        data = {
            "removed": outcomes[:, :, 0],
            "controls": {name: outcomes[:, :, part] for name, part in kinds.items()},
            "kl": found.values["kl"].reshape(*cells, -1)[:, :, 0],
            "variance_removed": shares[:, :, 0],
            "control_variance": {name: shares[:, :, part] for name, part in kinds.items()},
            "dormant": np.reshape(dormant, cells[:2]), "ranks": list(ranks),
            "sites": list(study.sites), **study.data(found, metric),
        }  # fmt: skip
        yield Measured(study.part(metric), data, {"tokens": tokens, "lost": lost})


def removed_variance(rows: Array, space: Array) -> Array:
    """Share of the variance of centered rows in the first columns of an orthonormal space."""
    shares = np.square(rows @ space).sum(axis=0) / np.square(rows).sum()
    return np.asarray(np.cumsum(shares))


def matched(rows: Array, share: float, random: np.random.Generator) -> Array:
    """A random subspace, `(width, rank)`, of a share of the variance, within 5 % of it.

    Directions with the covariance of the rows are added until it is reached. The closest of
    several draws where none is within.
    """
    best, closest = rows[:0].T, np.inf
    for _ in range(TRIES):
        directions = random.standard_normal((min(rows.shape), len(rows))) @ rows
        space = np.linalg.qr(directions.T)[0]
        off = np.abs(removed_variance(rows, space) / share - 1.0)
        rank = int(off.argmin()) + 1
        if off[rank - 1] < closest:
            best, closest = space[:, :rank], off[rank - 1]
        if closest <= TOLERANCE:
            break
    return best


def dormant_share(lm: LanguageModel, site: str, space: Array) -> float:
    """Share of an orthonormal space of which the block writes nothing; NaN in the stream.

    That in the null space of the output projection of `mlp.post` and `attn.z`.
    """
    if site.endswith("mlp.pre") or (rows := output_rows(lm, site)) is None:
        return np.nan
    directions, size, _ = np.linalg.svd(rows.cpu().numpy(), full_matrices=False)
    written = directions[:, size > size[0] * 1e-6]
    return float(1.0 - np.square(written.T @ space).sum() / space.shape[1])


@torch.no_grad()
def lost_log_probability(
    lm: LanguageModel, site: str, texts: Texts, function: Callable[[Tensor], Tensor]
) -> Array:
    """Nats of log probability that each token loses where vectors at a site are changed.

    `function` is of all vectors `(tokens, width)`; 0 at the first token of a text.
    """
    found = []
    for ids in texts:
        tokens, logs = torch.tensor([ids], device=lm.device), []
        for change in (lambda h: h, function):
            with lm.replaced(site, lambda h, f=change: f(exact(h)[0])[None].to(h)):  # type: ignore[misc]
                logits = lm.logits(tokens)[0, :-1]
            logs.append(logits.double().log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0])
        found += [logs[0].new_zeros(1), logs[0] - logs[1]]
    return np.asarray(torch.cat(found).cpu())
