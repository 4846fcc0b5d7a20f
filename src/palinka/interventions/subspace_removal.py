"""Runs without subspaces."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.errors import InputError
from palinka.interventions.engine import run
from palinka.interventions.plan import Intervention, Position, ProjectOut
from palinka.interventions.steering import contrast_means, decoder_rows, token_vectors
from palinka.interventions.study import Measured, Study

Array = NDArray[np.float64]
TRIES, TOLERANCE = 100, 0.05


def subspace_removal(
    study: Study,
    *,
    ranks: Sequence[int] = (1, 2, 4),
    contrast: str = "",
    latents: Sequence[int] = (),
    positions: Position = "all",
    draws: int = 50,
    seed: int = 0,
) -> Iterator[Measured]:
    """Freeze subspaces of each site at their mean in the clean runs, and measure the outcomes.

    Means, variances and components are over the tokens of the corrupted prompts but the first.

    Args:
        study: The model, the prompts, the sites, and the autoencoders of `latents`.
        ranks: Numbers of components of the basis: principal components by default.
        contrast: Stimuli file of two conditions, other texts than the prompts: the basis is the
            difference of their means, of rank 1.
        latents: Latents whose decoder directions the basis spans, in the order of their principal
            components.
        positions: A role, an index, or `all`.
        draws: Number of controls of each kind: `matched`, spanned by directions with the
            covariance of the activations, as many as remove the same variance, and `isotropic`.
        seed: Seed of the controls.
    """
    lm, pairs = study.model, study.prompts
    plan: list[list[Intervention]] = []
    variance: list[list[float]] = []
    for site in study.sites:
        rows = np.concatenate(token_vectors(lm, site, pairs.corrupted))
        _, scale, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        rows, random = scale[:, None] * axes, np.random.default_rng(seed)  # of the same covariance
        if contrast:
            assert study.texts is not None
            a, b = contrast_means(lm, site, study.texts(contrast), pairs)
            basis = (b.mean(axis=0) - a.mean(axis=0))[None]
        elif latents:
            basis = decoder_rows(study.of_latents(site), latents, rows.shape[1])
        else:
            basis = rows
        basis = np.linalg.svd(basis, full_matrices=False)[2].T
        if max(ranks) > basis.shape[1]:
            given = f"ranks {list(ranks)}, and the basis at {site} has {basis.shape[1]} directions"
            raise InputError(f"{given}; give smaller ranks")
        for rank in ranks:
            own = basis[:, :rank]
            share = removed_variance(rows, own)[-1]
            spaces = [own, *(matched(rows, share, random) for _ in range(draws))]
            shape = (draws, rows.shape[1], rank)
            spaces += list(np.linalg.qr(random.standard_normal(shape))[0])
            variance.append([removed_variance(rows, space)[-1] for space in spaces])
            for space in spaces:
                value = ProjectOut(torch.as_tensor(space))
                plan.append([Intervention(site, value, positions)])
    metrics = list(dict.fromkeys([*study.metrics, "kl"]))
    found = run(lm, pairs, plan, base="clean", metrics=metrics)
    cells = len(study.sites), len(ranks), 1 + 2 * draws
    shares = np.reshape(variance, cells)
    kinds = {"matched": slice(1, 1 + draws), "isotropic": slice(1 + draws, None)}
    for metric in study.metrics:
        outcomes = found.values[metric].reshape(*cells, -1)
        data = {
            "removed": outcomes[:, :, 0], "clean": found.clean[metric],
            "controls": {name: outcomes[:, :, part] for name, part in kinds.items()},
            "kl": found.values["kl"].reshape(*cells, -1)[:, :, 0],
            "variance_removed": shares[:, :, 0],
            "control_variance": {name: shares[:, :, part] for name, part in kinds.items()},
            "ranks": list(ranks), "sites": list(study.sites), "clusters": pairs.templates,
            "outcome": metric,
        }  # fmt: skip
        yield Measured(study.part(metric), data)


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
