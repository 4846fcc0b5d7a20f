"""Reconstruction, sparsity and language-model loss of dictionaries."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from palinka.analyses.result import Mask
from palinka.analyses.stats import bootstrap
from palinka.errors import InputError, track
from palinka.evaluation.controls import beside_random
from palinka.evaluation.losses import RATIOS, patched_losses, sum_by_document
from palinka.evaluation.representations import random_dictionaries, read_rows
from palinka.evaluation.values import Dictionary, Group, Measurement, Subject, value_of
from palinka.language_models.edits import as_function

# Of the language model alone, the same for every dictionary.
OF_MODEL = ("ce_clean", "ce_ablated", "ce_ablated_mean")
# Sums over the rows of a document: numerator and denominator of each metric.
COLUMNS = ("rows", "distance", "error", "l0", "l1", "cosine")
_SUMS = np.eye(len(COLUMNS))
ROW_RATIOS: bootstrap.Ratios = {"fvu": (_SUMS[2], _SUMS[1])} | {
    name: (_SUMS[COLUMNS.index(name)], _SUMS[0]) for name in ("l0", "l1", "cosine")
}


class _Rows:
    """Reconstruct with a dictionary, and keep what is measured of each row."""

    def __init__(self, dictionary: Dictionary, mean: Tensor, ablated: Mask | None = None) -> None:
        self.tables: list[NDArray[np.float64]] = []
        self.fired = torch.zeros(dictionary.latent_dim, dtype=torch.int64, device=mean.device)
        self._mean, self._latents = mean, mean
        self._ablated = None if ablated is None else torch.from_numpy(ablated).to(mean.device)
        self._reconstruct = as_function(dictionary.autoencoder, self._keep)

    def _keep(self, latents: Tensor) -> Tensor:
        if self._ablated is not None:
            latents = latents.masked_fill(self._ablated, 0.0)
        self._latents = latents.flatten(0, -2)
        return latents

    def __call__(self, x: Tensor) -> Tensor:
        reconstruction = self._reconstruct(x)
        target, latents = x.double().flatten(0, -2), self._latents
        given = reconstruction.double().flatten(0, -2)
        self.fired += (latents != 0).sum(dim=0)
        columns = (
            torch.ones(len(target), dtype=torch.float64, device=target.device),
            (target - self._mean).square().sum(dim=1),
            (target - given).square().sum(dim=1),
            (latents != 0).sum(dim=1).double(),
            latents.abs().sum(dim=1, dtype=torch.float64),
            functional.cosine_similarity(given, target, eps=1e-300),
        )
        self.tables.append(torch.stack(columns, dim=1).cpu().numpy())
        return reconstruction


AT_RANDOM = 3  # dictionaries at initialization for each recipe
COSINE = "cosine is of activations as they are; a fit with data.center gives that of centered ones"
ABLATED = ("fvu", "ce_delta")  # what is measured without some of the latents
WITHOUT = ("_without_unstable", "_without_matched")


@torch.no_grad()
def core(subject: Subject, ablations: Sequence[tuple[Dictionary, str, Mask | None]] = ()) -> Group:
    """Measure `fvu`, `l0`, `l1`, `cosine`, losses, `dead` and `density` of every dictionary.

    The language model is run with its own activations, zeros and the mean, and once more for each
    dictionary, also for those at initialization of the same recipes and L0, beside whose losses the
    others are given, and for the `ablations` of other groups. A control of a language model has no
    loss to recover, and none is measured. `fvu` is the squared error as a fraction of the squared
    distance to the mean of the validation rows; `dead` counts latents that are active on no row.
    """
    has_loss = subject.model.spec.control is None
    random = random_dictionaries(subject, 0, AT_RANDOM) if has_loss and subject.dictionaries else []
    every = [*((one, "", None) for one in (*subject.dictionaries, *random)), *ablations]
    mean = torch.from_numpy(subject.mean).to(subject.model.device)
    measured = [_Rows(one, mean, mask) for one, _, mask in every]
    contexts = [context for context in subject.contexts() if context.tokens.size > 1]
    if not contexts:
        raise InputError("the validation split has no predicted token; give more text")
    places = np.concatenate([context.documents[subject.skip :] for context in contexts])
    rows, tracked = len(places), track(contexts, "evaluating")
    if has_loss:
        _, losses = patched_losses(
            subject.model, subject.site, measured, subject.mean, tracked, skip=subject.skip
        )
    else:
        for x in read_rows(subject, tracked):
            for one in measured:
                one(x)
    found: list[Measurement] = []
    for at, ((dictionary, suffix, _), one) in enumerate(zip(every, measured, strict=True)):
        documents, table = sum_by_document(places, np.concatenate(one.tables))
        own = [_ratio(name, dictionary.name, table, *ROW_RATIOS[name]) for name in ROW_RATIOS]
        if has_loss:
            of = dictionary.name, losses[at]
            own += [_ratio(name, *of, *RATIOS[name]) for name in RATIOS if name not in OF_MODEL]
        dead = float((one.fired == 0).sum())
        reason = "none: a resample has fewer tokens, on which more latents look dead"
        own.append(Measurement("dead", dictionary.name, dead, None, "tokens", rows, method=reason))
        kept = (m for m in own if not suffix or m.metric in ABLATED)
        found += [replace(m, metric=m.metric + suffix) for m in kept]
    pairs = ([m for m in found if m.metric.endswith(suffix)] for suffix in WITHOUT)
    for a, b in zip(*pairs, strict=True):
        found.append(a.less(b, a.metric.replace("without_unstable", "unstable_less_matched")))
    model_name = subject.model.spec.name
    of_model = [
        value_of([_ratio(name, model_name, losses[0], *RATIOS[name])], model_name)
        for name in OF_MODEL if has_loss
    ]  # fmt: skip
    remark = bootstrap.interval_remark(len(documents))
    note = f"a latent active on none of {rows:,} tokens has a density below {3 / rows:.2g} (95 %)"
    density = {f"density/{d.name}": one.fired.cpu().numpy() / rows
               for d, one in zip(subject.dictionaries, measured, strict=False)}  # fmt: skip
    beside = beside_random(subject.dictionaries, random, found)
    return replace(
        beside,
        measurements=[one for one in found if one.of not in {d.name for d in random}],
        values=[*of_model, *beside.values],
        arrays=density,
        notes=[note, COSINE, *filter(None, [remark]), *beside.notes],
    )


def _ratio(
    metric: str, of: str, sums: NDArray[np.float64], above: ArrayLike, below: ArrayLike
) -> Measurement:
    """Measure a ratio of columns of sums by document, `(documents, columns)`."""
    columns = sums @ np.asarray(above), sums @ np.asarray(below)
    value, effect, freedom = bootstrap.document_ratio(*columns)
    n, method = len(sums), "t over documents"
    if n < (least := bootstrap.MINIMUM_DOCUMENTS):
        effect, method = np.full(n, np.nan), f"none: fewer than {least} documents"
    return Measurement(metric, of, value, effect, "documents", n, freedom, method=method)
