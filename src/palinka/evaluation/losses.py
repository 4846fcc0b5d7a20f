"""Language-model losses with patched activations, by document."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from palinka.analyses.stats.bootstrap import Ratios
from palinka.data import Context
from palinka.language_models import LanguageModel
from palinka.language_models.randomized import token_order
from palinka.language_models.sites import reading

CHUNK_LOGITS = 1 << 19  # per chunk, which stays in the processor's cache as float64
BATCH_LOGITS = 1 << 24  # per batch: 64 MiB in float32
Sums = tuple[NDArray[np.int64], NDArray[np.float64]]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each next token `(…)` under logits `(…, vocabulary)`, in nats, float64."""
    return _in_chunks(
        lambda x, y: functional.cross_entropy(x.double(), y, reduction="none"), logits, targets
    )


def kl_divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL(clean ‖ other) of each position's logits `(…, vocabulary)`, in nats, float64."""

    def divergences(*pair: Tensor) -> Tensor:
        log_p, log_q = (logits.double().log_softmax(dim=1) for logits in pair)
        return functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)

    return _in_chunks(divergences, clean, other)


def _in_chunks(function: Callable[..., Tensor], logits: Tensor, others: Tensor) -> Tensor:
    shape, size = logits.shape[:-1], max(1, CHUNK_LOGITS // logits.shape[-1])
    rows = (torch.split(x.flatten(0, len(shape) - 1), size) for x in (logits, others))
    return torch.cat([function(*chunk) for chunk in zip(*rows, strict=True)]).view(shape)


# Sums over the predicted tokens of a document.
COLUMNS = (
    "tokens", "ce_clean", "ce_spliced", "ce_ablated", "ce_ablated_mean", "kl",
    "error_spliced", "error_ablated_mean",
)  # fmt: skip
# Numerator and denominator of each metric, as weights of the columns.
_SUMS = np.eye(len(COLUMNS))
_TOKENS, _CLEAN, _SPLICED, _ZERO, _MEAN, _, _ERROR, _MEAN_ERROR = _SUMS
RATIOS: Ratios = {name: (_SUMS[1 + i], _TOKENS) for i, name in enumerate(COLUMNS[1:6])} | {
    "ce_delta": (_SPLICED - _CLEAN, _TOKENS),
    "loss_recovered": (_ZERO - _SPLICED, _ZERO - _CLEAN),
    "loss_recovered_mean": (_MEAN - _SPLICED, _MEAN - _CLEAN),
}
ERROR_RATIOS: Ratios = {  # with an `error_site`
    "site_mse": (_ERROR, _TOKENS),
    "site_recovered": (_MEAN_ERROR - _ERROR, _MEAN_ERROR),
}


@torch.no_grad()
def patched_losses(
    model: LanguageModel, site: str, reconstructions: Sequence[Callable[[Tensor], Tensor]],
    mean: NDArray[np.float64], contexts: Iterable[Context], *, skip: int = 0,
    batch_size: int | None = None, share: tuple[int, int] = (0, 1),
    source_site: str | None = None, error_site: str | None = None,
) -> Sums:  # fmt: skip
    """Sum the losses of a model by document, clean and with a site's activations patched.

    Every next token within a context counts, for its own document. The site is patched with each
    of its `reconstructions`, functions of raw activations, with zeros, and with its `mean`,
    `(width,)`, except at the first `skip` tokens of each context. Neighboring contexts of one
    length are batched by `batch_size`, by default as many as make 64 MiB of logits; of a share
    `(n, of)`, every `of`-th batch is taken, beginning with the `n`-th. A transcoder reads
    `source_site`; the change of activations is measured at `error_site`.

    Returns:
        The documents in ascending order, `(documents,)`, and their sums for each reconstruction,
        `(reconstructions, documents, columns)` with the columns of `COLUMNS`.
    """
    center = torch.from_numpy(mean).to(model.device)
    sites, width = (site, source_site or site, error_site or site), len(COLUMNS)
    start = _start(model, sites)
    found = [(np.empty(0, dtype=np.int64), np.empty((0, len(reconstructions) * width)))]
    for batch in islice(batches(contexts, model, batch_size), share[0], None, share[1]):
        tokens = torch.from_numpy(np.stack([context.tokens for context in batch])).to(model.device)
        targets = tokens[:, 1:]
        clean, (*read, states) = _run(model, tokens, (*sites, start or site))
        x = read[0][:, skip:]
        # What comes before the patched site is the same in every pass.
        begin = partial(model.run_from, start, states) if start else partial(model.logits, tokens)
        patched = partial(_patched, model, tokens, sites, read, skip, begin)
        zero = cross_entropy(patched(torch.zeros_like(x))[0], targets)
        logits, mean_error = patched(center.expand_as(x))
        average = cross_entropy(logits, targets)
        first, tables = cross_entropy(clean, targets), []
        for reconstruct in reconstructions:
            del logits  # before those of the next pass
            logits, error = patched(reconstruct(read[1][:, skip:]))
            spliced, kl = cross_entropy(logits, targets), kl_divergence(clean, logits)
            columns = (torch.ones_like(kl), first, spliced, zero, average, kl, error, mean_error)
            wide = [column.expand_as(kl).double() for column in columns]
            tables.append(torch.stack(wide, dim=-1).flatten(0, 1))
        del logits
        documents = np.stack([context.documents[1:] for context in batch]).ravel()
        found.append(sum_by_document(documents, torch.cat(tables, dim=1).cpu().numpy()))
    parts, sums = zip(*found, strict=True)
    own, joined = sum_by_document(np.concatenate(parts), np.concatenate(sums))
    return own, joined.reshape(len(own), len(reconstructions), width).swapaxes(0, 1)


def sum_by_document(documents: NDArray[np.int64], rows: NDArray[np.float64]) -> Sums:
    """Distinct documents in ascending order, and the sum of the rows of each."""
    own, places = np.unique(documents, return_inverse=True)
    sums = np.zeros((len(own), rows.shape[1]))
    np.add.at(sums, places, rows)
    return own, sums


def _start(model: LanguageModel, sites: Sequence[str]) -> str | None:
    """Residual stream before the first of the sites; None where no pass can begin there."""
    names = [model.spec.sites.resolve(site) for site in sites]
    blocks = [int(name.split(".")[1]) for name in names if re.match(r"blocks\.\d+\.", name)]
    known = len(blocks) == len(sites) and set(names) <= model.spec.sites.taps.keys()
    return f"hidden.{min(blocks)}" if known and model.spec.control != "tokens" else None


def _patched(
    model: LanguageModel, tokens: Tensor, sites: Sequence[str], read: list[Tensor], skip: int,
    begin: Callable[[], Tensor], new: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Logits with the first site patched after `skip`, and the squared change at the last."""
    x, _, before = read
    patch = torch.cat([x[:, :skip], new.to(x)], dim=1)
    logits, (*_, after) = _run(model, tokens, sites, patch, begin)
    return logits, (after.double() - before.double()).square().mean(dim=-1)[:, 1:]


def _run(
    model: LanguageModel, tokens: Tensor, sites: Sequence[str], patch: Tensor | None = None,
    begin: Callable[[], Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Logits of next tokens, and activations at sites, of which the first may be patched."""
    taps = {site: model.spec.sites.tap(site) for site in sites}
    order = None
    if model.spec.control == "tokens":  # the hooks see its order, the caller that of the text
        order = token_order(tokens, None, model.spec.control_seed)[..., None]
    with ExitStack() as hooks:
        if patch is not None:
            patch = patch if order is None else patch.take_along_dim(order, 1)
            hooks.enter_context(model.replaced(sites[0], lambda x: patch.view(x.shape)))
        read = hooks.enter_context(reading(model.model, taps, stop=False))
        logits = (begin() if begin else model.logits(tokens))[:, :-1]
    # Some models run their MLP on all tokens in one row.
    found = [read[s].reshape(-1, tokens.shape[1], read[s].shape[-1]) for s in sites]
    if order is not None:
        found = [x.take_along_dim(order.argsort(dim=1), 1) for x in found]
    return logits, found


def batches(
    contexts: Iterable[Context], model: LanguageModel, batch_size: int | None = None
) -> Iterator[list[Context]]:
    """Neighboring contexts of one length of more than a token; see `patched_losses`."""
    vocabulary = int(model.model.config.vocab_size)
    predicted = (context for context in contexts if context.tokens.size > 1)
    for length, alike in groupby(predicted, key=lambda context: context.tokens.size):
        size = batch_size or max(1, BATCH_LOGITS // (vocabulary * length))
        while batch := list(islice(alike, size)):
            yield batch
