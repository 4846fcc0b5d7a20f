"""Latents that reappear in dictionaries of other seeds."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array, vstack
from torch import nn

from palinka.analyses.figures.latent_stability import latent_stability as draw_stability
from palinka.analyses.result import Mask
from palinka.analyses.stats import dictionaries as stats
from palinka.analyses.stats.bootstrap import Interval, share_interval
from palinka.autoencoders import Autoencoder
from palinka.errors import InputError, checks_strings, counted, track
from palinka.evaluation.core import WITHOUT
from palinka.evaluation.representations import random_dictionary, read_rows
from palinka.evaluation.values import ALL, OF_TWO, Array, Dictionary, Group, Subject, Value
from palinka.language_models.edits import latents_of

STABLE = 0.5  # share of the other seeds with a partner from which a latent is stable
STRATA = 10  # of density, in which control latents are drawn
DRAWS = 20  # of the null


@checks_strings
def stability(
    subject: Subject, force: bool = False,
    null: Literal["signs", "rotation", "untrained", "shuffled"] = "signs",
    floor: float | None = None, seed: int = 0,
) -> Group:  # fmt: skip
    """Match the latents of every two dictionaries of a recipe, beside the null `null`.

    Unstable latents have a partner in fewer than half of the other seeds. The reconstruction is
    to be measured without them, and without as many random latents of the same densities.

    Args:
        subject: The dictionaries.
        force: Take all dictionaries as one recipe, whatever their settings.
        null: That of `latent_stability`; `untrained`, decoders at initialization; or `shuffled`,
            decoders of the same recipe, trained on rows with shuffled coordinates.
        floor: Least cosine of partners; default the median of the largest cosines under the null,
            at least 0.1.
        seed: Seed of draws.
    """
    recipes = {ALL: [*subject.dictionaries]} if force else subject.recipes
    several = {name: ones for name, ones in recipes.items() if len(ones) > 1}
    if not several:
        notes = ["one seed only; train more with model.variants {seed: [0, 1, 2, 3, 4]}"]
        if len(recipes) > 1:
            fault = f"{_joined(recipes)} {_differ(subject.dictionaries)}"
            notes.append(f"{fault}; say --stability.force true")
        return Group(notes=[f"stability: {note}" for note in notes])
    covariance, latents = _measure(subject, [one for ones in several.values() for one in ones])
    density = {name: np.diff(each.indptr) / each.shape[0] for name, each in latents.items()}
    values, arrays, notes, found = [], dict[str, NDArray[Any]](), list[str](), {}
    ablations = list[tuple[Dictionary, str, Mask]]()
    random = np.random.default_rng(seed)
    for recipe, ones in several.items():
        alive = [density[one.name] > 0 for one in ones]
        shuffled = [one.decoder for one in subject.shuffled if force or one.recipe == recipe]
        draws = {"untrained": partial(_untrained, ones[0])}
        draws |= {"shuffled": partial(_shuffled, shuffled)}
        known = stats.latent_stability(
            [one.decoder for one in ones], alive=alive, covariance=covariance,
            null=draws.get(null, null), floor=floor,  # type: ignore[arg-type]
            draws=DRAWS, seed=seed,
        )  # fmt: skip
        found[recipe] = known
        unstable = [shares < STABLE for shares in known.reappears]
        size = round(sum(map(np.sum, alive)) / len(ones))
        estimates = {**known.estimates, **_of_partners(ones, known, latents)}
        overlap, cosines = _subspaces(ones, unstable, covariance, random)
        values += [
            _value(name, recipe, one, len(ones), size)
            for name, one in {**estimates, **overlap}.items()
        ]
        curves = {"principal_cosines": cosines, "curve": known.curve, "null_curves": known.null}
        arrays |= {f"stability/{recipe}/{name}": array for name, array in curves.items()}
        per_latent = known.reappears, known.best_cosine, known.partner
        for one, mask, again, best, partner in zip(ones, unstable, *per_latent, strict=True):
            low, high = stats.wilson(again * (len(ones) - 1), len(ones) - 1)
            own: dict[str, NDArray[Any]] = {"reappears": again, "reappears_low": low}
            own |= {"reappears_high": high, "best_cosine": best, "partner": partner}
            arrays |= {f"{name}/{one.name}": array for name, array in own.items()}
            matched = _matched(mask, density[one.name], random)
            ablations += zip((one, one), WITHOUT, (mask, matched), strict=True)
        if known.estimates["share_corrected"].low <= 0:
            notes.append(f"stability: the latents of {recipe} reappear no more than by chance")
        dead = counted(sum(int((~mask).sum()) for mask in alive), "dead latents")
        by_chance = 100 * known.estimates["share_null"].value
        least = f"at least {known.threshold:.3g}, which {by_chance:.2g} % have by chance"
        floor_of = f"pairs below {known.floor:.3g} are not matched"
        notes.append(f"stability of {recipe}: partners have cosines of {least}; {floor_of}; {dead}")
    return Group((), values, arrays, draw_stability(found), notes, ablations=ablations)


def _joined(names: Iterable[str]) -> str:
    """Names in words, such as `a, b and c`."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _differ(dictionaries: Sequence[Dictionary]) -> str:
    """Settings in which dictionaries differ, in words."""
    modules = [getattr(one.autoencoder, "autoencoder", one.autoencoder) for one in dictionaries]
    settings = [
        {"class": one.kind, **(module.config() if isinstance(module, Autoencoder) else {})}
        for one, module in zip(dictionaries, modules, strict=True)
    ]
    names = dict.fromkeys(name for one in settings for name in one)
    unequal = [n for n in names if any(one.get(n) != settings[0].get(n) for one in settings)]
    if not unequal:
        return "are of one class and shape, but not known to be one recipe"
    return f"differ in {_joined(unequal)}, not in seed alone"


def _untrained(one: Dictionary, rows: stats.Rows, random: np.random.Generator) -> stats.Rows:
    """As many decoder rows of the same class at initialization."""
    origin = torch.zeros(1, one.decoder.shape[1])
    if fresh := random_dictionary(one, origin, int(random.integers(1 << 31))):
        return np.asarray(fresh.dictionary.float().cpu().numpy()[: len(rows)])
    raise InputError(f"stability: {one.kind} has no initialization here; give another null")


def _shuffled(
    decoders: Sequence[stats.Rows], rows: stats.Rows, random: np.random.Generator
) -> stats.Rows:
    """As many rows of one of the decoders that were trained on shuffled coordinates."""
    if not decoders:
        fault = "no dictionary of the recipe was trained on shuffled coordinates"
        raise InputError(f"stability: {fault}; give another null")
    return decoders[int(random.integers(len(decoders)))][: len(rows)]


@torch.no_grad()
def _measure(
    subject: Subject, dictionaries: Sequence[Dictionary]
) -> tuple[Array, dict[str, csc_array[Any]]]:
    """Covariance of the activations, and latents, `(tokens, latents)`, by name."""
    width = len(subject.mean)
    second, total, rows = np.zeros((width, width)), np.zeros(width), 0
    parts: dict[str, list[csc_array[Any]]] = defaultdict(list)
    for read in read_rows(subject, track([*subject.contexts()], "reading activations")):
        x = read.flatten(0, 1)
        for one in dictionaries:
            latents = latents_of(one.autoencoder, x).float().cpu().numpy()
            parts[one.name].append(csc_array(latents))
        own = x.double().cpu().numpy()
        second, total, rows = second + own.T @ own, total + own.sum(axis=0), rows + len(own)
    covariance = second / rows - np.outer(total, total) / rows**2
    return covariance, {n: csc_array(vstack(each, format="csc")) for n, each in parts.items()}


def _of_partners(
    ones: Sequence[Dictionary], known: stats.LatentStability, latents: dict[str, csc_array[Any]]
) -> dict[str, Interval]:
    """Mean cosine of the encoders, if untied, and correlation of activations, of partners."""
    encoders = [_encoder(one) for one in ones]
    by_pair: dict[str, list[Array]] = defaultdict(list)
    pairs = list(combinations(range(len(ones)), 2))
    for i, j in pairs:
        mine = np.flatnonzero(known.cosine[i][:, j] >= known.threshold)
        theirs = known.partner[i][mine, j]
        a, b = latents[ones[i].name][:, mine], latents[ones[j].name][:, theirs]
        by_pair["activation_correlation"].append(_correlation(a, b))
        first, second = encoders[i], encoders[j]
        if first is not None and second is not None:
            by_pair["encoder_cosine"].append(np.sum(first[mine] * second[theirs], axis=1))
    found = {}
    for name, each in by_pair.items():
        some = [(pair, values) for pair, values in zip(pairs, each, strict=True) if len(values)]
        if not some:
            found[name] = Interval(np.nan, np.nan, np.nan)
            continue
        means, of_pair = [float(values.mean()) for _, values in some], some[0][1]
        mean, half = sum(means) / len(means), 1.96 * float(of_pair.std()) / len(of_pair) ** 0.5
        if len(pairs) > 1:
            half = stats.jackknife(means, [pair for pair, _ in some])
        found[name] = Interval(mean, mean - half, mean + half)
    return found


def _correlation(a: csc_array[Any], b: csc_array[Any]) -> Array:
    """Pearson's r over tokens of each column of one with that of the other."""
    n = a.shape[0]
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = (np.asarray(each.sum(axis=0)) / n for each in (x, y))
    both = np.asarray(x.multiply(y).sum(axis=0)) / n - mean_x * mean_y
    squares = [np.asarray(each.multiply(each).sum(axis=0)) / n for each in (x, y)]
    spread = (squares[0] - mean_x**2) * (squares[1] - mean_y**2)
    return np.asarray(both / np.sqrt(spread))


def _encoder(one: Dictionary) -> NDArray[np.float32] | None:
    """Unit rows of an encoder with weights of its own, `(latents, width)`."""
    inner = getattr(one.autoencoder, "autoencoder", one.autoencoder)
    encoder = getattr(inner, "encoder", None)
    if not isinstance(encoder, nn.Linear) or getattr(inner, "decoder_weight", None) is None:
        return None
    return stats.unit_rows(encoder.weight)


def _subspaces(
    ones: Sequence[Dictionary], unstable: Sequence[Mask], covariance: Array,
    random: np.random.Generator,
) -> tuple[dict[str, Interval], Array]:  # fmt: skip
    """Overlap of the main directions of the unstable latents, beside the null of signs."""
    rows = [one.decoder[mask] for one, mask in zip(ones, unstable, strict=True)]
    if min(map(len, rows)) < 2:
        return {}, np.empty((0, 0))
    axes = np.linalg.eigh(covariance)[1]
    overlap, cosines, spans = stats.shared_subspace([each @ axes for each in rows])
    signs = random.choice([-1.0, 1.0], (DRAWS, len(spans), len(axes)))
    flipped = ([s * span for s, span in zip(draw, spans, strict=True)] for draw in signs)
    by_chance = [np.square(stats.principal_cosines(each)).mean() for each in flipped]
    pairs = list(combinations(range(len(ones)), 2))
    half = stats.jackknife(np.square(cosines).mean(axis=1), pairs)
    found = {
        "unstable_subspace": share_interval(overlap, half),
        "unstable_subspace_null": Interval(float(np.mean(by_chance)), np.nan, np.nan),
        "unstable_subspace_random": Interval(len(spans[0]) / len(axes), np.nan, np.nan),
    }
    return found, cosines


def _value(name: str, recipe: str, one: Interval, seeds: int, alive: int) -> Value:
    """An interval over seeds, of the null over draws, or of two dictionaries over latents."""
    unit, n, method = "seeds", seeds, "jackknife over seeds"
    if seeds == 2:
        unit, n, method = "latents", alive, OF_TWO
    if name.endswith("_null"):
        unit, n, method = "draws", DRAWS, "draws of the null"
    if np.isnan(one.low):
        few = "one pair" if seeds == 2 else "too few pairs of seeds with partners"
        few = "no latent has a partner" if np.isnan(one.value) else few
        constant = "an expectation" if name.endswith("_random") else few
        method = f"none: {'a mean over draws' if '_null' in name else constant}"
    metric = f"stability_{name}"
    value, low, high = map(float, (one.value, one.low, one.high))
    return Value(metric, recipe, value, low, high, {unit: n}, method)


def _matched(chosen: Mask, density: Array, random: np.random.Generator) -> Mask:
    """As many random latents that are alive, as many of each stratum of density."""
    alive = np.flatnonzero(density > 0)
    strata = np.array_split(alive[np.argsort(density[alive], kind="stable")], STRATA)
    found = np.zeros(len(density), bool)
    for stratum in strata:
        found[random.choice(stratum, int(chosen[stratum].sum()), replace=False)] = True
    return found
