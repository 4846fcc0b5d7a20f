"""Recovery of the features that synthetic data is made of."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from palinka.analyses.stats import ground_truth
from palinka.analyses.stats.bootstrap import Ratio, document_ratio
from palinka.data.synthetic import StructuredData
from palinka.errors import track
from palinka.evaluation.representations import random_dictionary
from palinka.evaluation.values import Array, Dictionary, Group, Measurement, value_of
from palinka.language_models.edits import as_function

LEAST_NORM = 1e-6  # of a row whose shrinkage is defined
OF_WEIGHTS = "none: the same for all rows; give several seeds"
OF_SHARES = "none: give several seeds"


def recovery(
    dictionaries: Sequence[Dictionary], data: StructuredData, rows: int = 8192, seed: int = 0
) -> Group:
    """Compare dictionaries with the features that their training data is made of.

    `mcc`, `uniqueness`, `coverage`, `hedging`: of the directions; `precision`, `recall`, `f1`,
    `accuracy`: of the latents as detectors, also `…_alive` and `…_matched`; `explained_variance`,
    `shrinkage`, `l0`: of the reconstruction; `dead`: a share; `absorption`: of parents. Beside the
    values of each recipe are those of random dictionaries of its class, shape and L0, one for
    each of its dictionaries, by the name `random_dictionary of …`. The seed is that of the rows,
    other than those of training.
    """
    x, strengths = data.sample(rows, seed)
    s = strengths.numpy()
    measure = partial(_measure, x, s, data, ground_truth.related_features(s, data.parents))
    measurements, random = list[Measurement](), defaultdict[str, list[list[Measurement]]](list)
    for number, one in enumerate(track(dictionaries, "comparing with the truth")):
        measurements += measure(one)
        if control := random_dictionary(one, x, seed + number):
            decoder = control.dictionary.float().cpu().numpy()
            fresh = replace(one, autoencoder=control, decoder=decoder)
            random[one.recipe].append(measure(fresh))
    values = [
        value_of(own, f"random_dictionary of {recipe}")
        for recipe, each in random.items()
        for own in zip(*each, strict=True)
    ]
    true = float((s > 0).sum(axis=1).mean())
    return Group(measurements, values, notes=[f"{true:.3g} features are active in a row"])


@torch.no_grad()
def _measure(
    x: torch.Tensor,
    s: Array,
    data: StructuredData,
    related: Sequence[ground_truth.Features],
    one: Dictionary,
) -> list[Measurement]:
    """All metrics of a dictionary."""
    latents: list[torch.Tensor] = []

    def keep(found: torch.Tensor) -> torch.Tensor:
        latents.append(found)
        return found

    made = as_function(one.autoencoder, keep)(x).double().cpu().numpy()
    z, given = latents[0].float().cpu().numpy(), x.double().numpy()
    w, d = one.decoder, data.directions.numpy()
    uniqueness, coverage = ground_truth.feature_uniqueness(w, d)
    weights = {"mcc": ground_truth.mean_correlation_coefficient(w, d), "uniqueness": uniqueness}
    weights |= {"coverage": coverage, **ground_truth.hedging(w, d, related)}
    shares = {"dead": float((z == 0).all(axis=0).mean())}
    shares |= ground_truth.known_absorption(z, s, w, d, data.parents)
    every, norms = np.ones(len(z)), np.linalg.norm(given, axis=1)
    kept = norms > LEAST_NORM
    error = document_ratio(
        np.square(given - made).sum(axis=1), np.square(given - given.mean(axis=0)).sum(axis=1)
    )
    length = np.divide(np.linalg.norm(made, axis=1), norms, out=np.zeros(len(z)), where=kept)
    ratios: Mapping[str, Ratio] = ground_truth.firing_scores(z, s, w, d) | {
        "explained_variance": Ratio(1.0 - error.value, -error.influence, error.freedom),
        "shrinkage": document_ratio(length, kept.astype(float)),
        "l0": document_ratio((z != 0).sum(axis=1), every),
    }
    return [
        *(Measurement(name, one.name, value, None, "latents", len(w), method=OF_WEIGHTS)
          for name, value in weights.items()),
        *(Measurement(name, one.name, value, None, "rows", len(z), method=OF_SHARES)
          for name, value in shares.items()),
        *(Measurement(name, one.name, own.value, own.influence, "rows", len(z), own.freedom)
          for name, own in ratios.items()),
    ]  # fmt: skip
