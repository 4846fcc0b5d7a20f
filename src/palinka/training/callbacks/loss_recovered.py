"""Language-model loss with patched activations."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby, islice

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from palinka.analyses.stats.bootstrap import (
    FEW_DOCUMENTS,
    Ratios,
    document_intervals,
    interval_remark,
)  # fmt: skip
from palinka.autoencoders.base import positive_integer
from palinka.autoencoders.distributed import gather_unequal_rows, world, world_size
from palinka.data import Context
from palinka.errors import track
from palinka.language_models import LanguageModel
from palinka.language_models.edits import EncodesAndDecodes, as_function
from palinka.language_models.sites import reading
from palinka.training.callbacks.base import EveryNSteps, evaluating, iter_models, single_model
from palinka.training.callbacks.checkpoints import fingerprint

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
    model: LanguageModel,
    site: str,
    autoencoder: EncodesAndDecodes,
    mean: NDArray[np.float64],
    contexts: Iterable[Context],
    *,
    skip: int = 0,
    batch_size: int | None = None,
    share: tuple[int, int] = (0, 1),
    source_site: str | None = None,
    error_site: str | None = None,
) -> Sums:
    """Sum the losses of a model by document, clean and with a site's activations patched.

    Every next token within a context counts, for its own document. The site is patched with its
    reconstruction by an autoencoder of raw activations, with zeros, and with its `mean`,
    `(width,)`, except at the first `skip` tokens of each context. Neighboring contexts of one
    length are batched by `batch_size`, by default as many as make 64 MiB of logits; of a share
    `(n, of)`, every `of`-th batch is taken, beginning with the `n`-th. A transcoder reads
    `source_site`; the change of activations is measured at `error_site`.

    Returns:
        The documents in ascending order, `(documents,)`, and their sums, `(documents, columns)`
        with the columns of `COLUMNS`.
    """
    center, reconstruct = torch.from_numpy(mean).to(model.device), as_function(autoencoder)
    sites = (site, source_site or site, error_site or site)
    found = [(np.empty(0, dtype=np.int64), np.empty((0, len(COLUMNS))))]
    for batch in islice(_batches(contexts, model, batch_size), share[0], None, share[1]):
        tokens = torch.from_numpy(np.stack([context.tokens for context in batch])).to(model.device)
        targets = tokens[:, 1:]
        # What comes before the patched site is the same in every pass.
        clean, (x, source, before) = _run(model, tokens, sites)
        values = {"tokens": torch.ones_like(targets), "ce_clean": cross_entropy(clean, targets)}
        patched = x[:, skip:]
        for name, new in (
            ("spliced", reconstruct(source[:, skip:])),
            ("ablated", torch.zeros_like(patched)),
            ("ablated_mean", center.expand_as(patched)),
        ):
            patch = torch.cat([x[:, :skip], new.to(x)], dim=1)
            logits, (*_, after) = _run(model, tokens, sites, patch)
            values[f"ce_{name}"] = cross_entropy(logits, targets)
            if name == "spliced":
                values["kl"] = kl_divergence(clean, logits)
            error = (after.double() - before.double()).square().mean(dim=-1)
            values[f"error_{name}"] = error[:, 1:].expand_as(targets)
            del logits  # before those of the next pass
        table = torch.stack([values[name].double().flatten() for name in COLUMNS], dim=1)
        documents = np.stack([context.documents[1:] for context in batch]).ravel()
        found.append(sum_by_document(documents, table.cpu().numpy()))
    parts, sums = zip(*found, strict=True)
    return sum_by_document(np.concatenate(parts), np.concatenate(sums))


def sum_by_document(documents: NDArray[np.int64], rows: NDArray[np.float64]) -> Sums:
    """Distinct documents in ascending order, and the sum of the rows of each."""
    own, places = np.unique(documents, return_inverse=True)
    sums = np.zeros((len(own), rows.shape[1]))
    np.add.at(sums, places, rows)
    return own, sums


def _run(
    model: LanguageModel, tokens: Tensor, sites: Sequence[str], patch: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Logits of next tokens, and activations at sites, of which the first may be patched."""
    taps = {site: model.spec.sites.tap(site) for site in sites}
    with ExitStack() as hooks:
        if patch is not None:
            hooks.enter_context(model.replaced(sites[0], lambda x: patch.view(x.shape)))
        read = hooks.enter_context(reading(model.model, taps, stop=False))
        logits = model.logits(tokens)[:, :-1]
    # Some models run their MLP on all tokens in one row.
    return logits, [read[s].reshape(-1, tokens.shape[1], read[s].shape[-1]) for s in sites]


def _batches(
    contexts: Iterable[Context], model: LanguageModel, batch_size: int | None
) -> Iterator[list[Context]]:
    vocabulary = int(model.model.config.vocab_size)
    predicted = (context for context in contexts if context.tokens.size > 1)
    for length, alike in groupby(predicted, key=lambda context: context.tokens.size):
        size = batch_size or max(1, BATCH_LOGITS // (vocabulary * length))
        while batch := list(islice(alike, size)):
            yield batch


class LanguageModelMetrics(EveryNSteps):
    """Measure loss recovered: a language model's loss with the reconstruction patched in.

    - `ce_clean`: cross-entropy of the next token, in nats, of the model as it is.
    - `ce_spliced`: the same with the site replaced by its reconstruction; `ce_delta`: the
      increase.
    - `ce_ablated`, `ce_ablated_mean`: the same with the site replaced by zeros, and by its mean
      over the validation rows.
    - `loss_recovered`: `(ce_ablated - ce_spliced) / (ce_ablated - ce_clean)`, and with
      `ce_ablated_mean` the same as `loss_recovered_mean`.
    - `kl`: mean KL(clean ‖ spliced) of the next-token distributions.
    - `site_mse`, where an `error_site` is given: mean squared difference between the activations
      there, spliced and clean; `site_recovered`: one minus its ratio to that of the mean's.

    They are means over every next token of the first contexts of the validation split; tokens that
    `skip_first` keeps out of the rows keep their own activations. Each has a 95 % interval over
    documents, if there are at least 8; below 40, a message says how reliable it is. They are
    logged as `val/ce_clean` (`test/…` while testing) and so on, the intervals as
    `val_interval/ce_clean/low` and `…/high`, and the number of documents as
    `val_interval/documents`.

    `validate` and `test` always measure. A `fit` with this callback measures at its end, and in a
    sweep for each variant; one whose latents are sharded cannot.

    Args:
        contexts: Number of contexts; null for all of the validation split.
        every_n_steps: In a fit, also measure every n optimizer steps.
        batch_size: Contexts per forward pass; null for as many as make 64 MiB of logits.
        error_site: A further site, such as that of a later layer, at which to measure how far the
            reconstruction moves the activations.

    Source:
        Bricken et al. (2023), Towards monosemanticity.
    """

    def __init__(
        self,
        contexts: int | None = 64,
        every_n_steps: int | None = None,
        batch_size: int | None = None,
        error_site: str | None = None,
    ) -> None:
        counts = {"contexts": contexts, "every_n_steps": every_n_steps, "batch_size": batch_size}
        for name, value in counts.items():
            if value is not None:
                positive_integer(name, value)
        self.contexts = contexts
        self.every_n_steps = every_n_steps
        self.batch_size = batch_size
        self.error_site = error_site
        self._last: tuple[int, tuple[int, ...]] = (-1, ())  # step and weights
        self._remark = ""

    def at_step(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure and log the weights of a step, of every variant of a sweep."""
        self._last = (trainer.global_step, fingerprint(module))
        values = {
            f"{one.name}/{name}" if one.name else name: value
            for one in iter_models(trainer, module)
            for name, value in self._measured(trainer, one.module).items()
        }
        trainer.callback_metrics.update(values)
        scalars = {name: float(value) for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(scalars, trainer.global_step)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure the trained weights, unless the last step did."""
        if (trainer.global_step, fingerprint(module)) != self._last:
            self.at_step(trainer, module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure a checkpoint."""
        if trainer.state.fn != TrainerFn.FITTING:
            values = self._measured(trainer, pl_module)  # the same on every process
            pl_module.log_dict(values, rank_zero_only=False, sync_dist=False)

    on_test_epoch_end = on_validation_epoch_end

    def _measured(self, trainer: Trainer, module: LightningModule) -> dict[str, Tensor]:
        """Values and bounds by the name of their log entry."""
        if trainer.fast_dev_run or not (found := single_model(self, trainer, module)):  # type: ignore[attr-defined]
            return {}
        autoencoder, data = found
        spec, group = data.validation_spec, world()
        rank = 0 if group is None else dist.get_rank(group)
        every = data.validation_contexts()
        contexts = islice(every, self.contexts)
        with evaluating(module):
            documents, sums = patched_losses(
                data.loaded_language_model,
                spec.resolved_sites[-1],
                autoencoder,
                data.validation_rows.statistics.mean[-spec.widths[-1] :],
                track(contexts, "patching", self.contexts) if rank == 0 else contexts,
                skip=spec.layout.skip,
                batch_size=self.batch_size,
                share=(rank, world_size(group)),
                source_site=spec.resolved_sites[0],
                error_site=self.error_site,
            )
        rows = torch.from_numpy(np.column_stack([documents.astype(np.float64), sums]))
        table = gather_unequal_rows(rows.to(module.device), group).cpu().numpy()
        documents, sums = sum_by_document(table[:, 0].astype(np.int64), table[:, 1:])
        remark = interval_remark(len(documents))
        if remark and self.contexts is not None and next(every, None) is not None:
            enough = self.contexts * 2 * FEW_DOCUMENTS // len(documents)
            option = "--trainer.callbacks+=LanguageModelMetrics --trainer.callbacks.contexts"
            remark += f", as with {option} {enough}"
        if remark and remark != self._remark:
            rank_zero_info(remark)
        self._remark = remark
        ratios = RATIOS if self.error_site is None else {**RATIOS, **ERROR_RATIOS}
        split, named = "test" if trainer.testing else "val", {}
        for name, interval in document_intervals(sums, ratios).items():
            named[f"{split}/{name}"] = interval.value
            if interval.low <= interval.high:  # a few documents have no interval
                named[f"{split}_interval/{name}/low"] = interval.low
                named[f"{split}_interval/{name}/high"] = interval.high
                named[f"{split}_interval/documents"] = float(len(documents))
        return {name: torch.tensor(value, device=module.device) for name, value in named.items()}
