"""Windows of text in which single latents are active, and in which they are silent."""

from collections import Counter
from collections.abc import Iterable
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, vstack

from palinka.data import Context
from palinka.language_models import LanguageModel
from palinka.language_models.edits import EncodesAndDecodes

LENGTH, PEAK = 32, 24  # tokens of a window; place of the strongest, where the text allows
QUANTILES, SHOWN, TESTED = 10, 4, 5  # of peaks; windows of each to explain from, and to test on
MINIMUM, NEGATIVES, FREQUENT = 100, 50, 5
GROUP_TOKENS = 2048  # read at a time
Integers = NDArray[np.int64]


class Activity(NamedTuple):
    """Tokens of a text without BOS, and the latents that are active there."""

    tokens: Integers  # ids, (tokens,)
    parts: Integers  # number of the part that one document has of one context, (tokens,)
    shown: NDArray[np.bool_]  # in a document to explain from; the others are for the test
    latents: Any  # CSC array of activations above 0, (tokens, latents)


class Windows(NamedTuple):
    """Starts of the windows of a latent, by their use."""

    shown: Integers
    active: Integers
    hard: Integers  # silent, with a token at which the latent is often active
    random: Integers  # silent


@torch.no_grad()
def read_activity(
    model: LanguageModel, site: str, autoencoder: EncodesAndDecodes,
    contexts: Iterable[Context], skip: int, seed: int,
) -> Activity:  # fmt: skip
    """Read the latents of a text, without the first `skip` tokens of contexts, and divide it."""
    columns, tables = [], []
    for length, alike in groupby(contexts, key=lambda context: len(context.tokens)):
        while batch := list(islice(alike, max(1, GROUP_TOKENS // length))):
            own = [(c.tokens, c.documents, c.positions) for c in batch]
            ids = torch.from_numpy(np.stack([tokens for tokens, *_ in own]))
            read = model.read_contexts(ids, [site])[site]
            latents = autoencoder.encode(read.float()).float().clamp(min=0.0)
            latents[:, :skip] = 0.0
            tables.append(csr_array(latents.flatten(0, 1).cpu().numpy()))
            columns += [np.stack([*of, np.arange(length)]) for of in own]
    tokens, documents, positions, places = np.concatenate(columns, axis=1)
    new = (np.diff(documents, prepend=-1) != 0) | (places == 0)
    random, sizes = np.random.default_rng(seed), np.bincount(documents)
    order = random.permutation(len(sizes))
    middle = (np.cumsum(sizes[order]) - sizes[order] / 2.0) / sizes.sum()
    shown = np.isin(documents, order[middle <= SHOWN / (SHOWN + TESTED)])
    text = positions >= 0
    of = (np.cumsum(new)[text], shown[text], csc_array(vstack(tables).tocsr()[text]))
    return Activity(tokens[text], *of)


def choose_latents(
    activity: Activity, count: int, seed: int
) -> tuple[dict[int, Windows], Counter[str]]:
    """Draw latents at even distances in the order of density, each with its windows.

    The others that have not enough windows are counted by reason.
    """
    found, reasons = dict[int, Windows](), Counter[str]()
    for latent in np.argsort(np.diff(activity.latents.indptr), kind="stable").tolist():
        windows = choose_windows(activity, latent, np.random.default_rng([seed, latent]))
        if isinstance(windows, str):
            reasons[windows] += 1
        else:
            found[latent] = windows
    if count < len(found):
        steps = np.arange(count) + np.random.default_rng(seed).random()
        ranked = [*found.items()]
        found = dict(ranked[int(step * len(ranked) / count)] for step in steps)
    return found, reasons


def choose_windows(activity: Activity, latent: int, random: np.random.Generator) -> Windows | str:
    """Choose the windows of a latent, or say which are missing.

    A window is around the strongest activation in a part of a document, or is silent; no part has
    two of one use. Each of ten quantiles of the strongest activations has as many windows.
    """
    tokens, parts, shown, latents = activity
    some = slice(*latents.indptr[latent : latent + 2].tolist())
    rows, values = latents.indices[some], latents.data[some]
    if not len(rows):
        return "never active"
    start, stop = (np.searchsorted(parts, parts[rows], side) for side in ("left", "right"))
    strongest = np.lexsort((-values, parts[rows]))
    strongest = strongest[(stop - start)[strongest] >= LENGTH]
    peaks = _first_of(parts[rows], strongest)
    if len(peaks) < MINIMUM:
        return f"active in fewer than {MINIMUM} contexts"
    sides = [(peaks[shown[rows[peaks]]], SHOWN), (peaks[~shown[rows[peaks]]], TESTED)]
    if any(len(own) < QUANTILES * each for own, each in sides):
        return "active in too few documents"
    starts = np.clip(rows - PEAK, start, stop - LENGTH)
    chosen: list[Integers] = []
    for own, each in sides:  # the strongest quantile first
        bands = np.array_split(own[np.argsort(-values[own], kind="stable")], QUANTILES)
        chosen.append(starts[np.concatenate([random.permutation(b)[:each] for b in bands])])
    grid = np.arange(0, len(tokens) - LENGTH + 1, LENGTH)
    grid = random.permutation(grid[(parts[grid] == parts[grid + LENGTH - 1]) & ~shown[grid]])
    silent = grid[np.searchsorted(rows, grid) == np.searchsorted(rows, grid + LENGTH)]
    ids, counts = np.unique(tokens[rows], return_counts=True)
    often = ids[np.argsort(-counts, kind="stable")[:FREQUENT]]
    holds = np.isin(tokens[silent[:, None] + np.arange(LENGTH)], often).any(axis=1)
    hard = _first_of(parts, silent[holds])[: NEGATIVES // 2]
    rest = _first_of(parts, silent[~np.isin(parts[silent], parts[hard])])[: NEGATIVES - len(hard)]
    if len(hard) + len(rest) < NEGATIVES:
        return "silent in too few contexts"
    return Windows(chosen[0], chosen[1], hard, rest)


def _first_of(groups: Integers, places: Integers) -> Integers:
    """The first of the places in each group, in their order."""
    return places[np.sort(np.unique(groups[places], return_index=True)[1])]
