"""Language-model loss with patched activations."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from palinka.analyses.stats.bootstrap import Interval, Ratios, document_intervals, interval_remark
from palinka.autoencoders.distributed import gather_unequal_rows, world, world_size
from palinka.data import ActivationDataModule, Context
from palinka.errors import InputError, track
from palinka.language_models import LanguageModel
from palinka.language_models.edits import EncodesAndDecodes, as_function
from palinka.training.callbacks.checkpoints import fingerprint
from palinka.training.callbacks.variants import iter_models
from palinka.training.module import SparseAutoencoderModule

# Logits per chunk, which stay in the processor's cache as float64.
CHUNK_LOGITS = 1 << 19


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each next token, in nats, float64.

    Args:
        logits: `(…, vocabulary)`.
        targets: Next tokens, `(…)`.
    """
    rows = max(1, CHUNK_LOGITS // logits.shape[-1])
    flat = (logits.flatten(0, -2), targets.flatten())
    chunks = zip(*(torch.split(tensor, rows) for tensor in flat), strict=True)
    losses = [functional.cross_entropy(x.double(), y, reduction="none") for x, y in chunks]
    return torch.cat(losses).view(targets.shape)


def kl_divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL(clean ‖ other) of the next-token distributions at each position, in nats, float64.

    Args:
        clean: Logits, `(…, vocabulary)`.
        other: Logits of the same shape.
    """
    rows = max(1, CHUNK_LOGITS // clean.shape[-1])
    flat = (clean.flatten(0, -2), other.flatten(0, -2))
    divergences = []
    for pair in zip(*(torch.split(logits, rows) for logits in flat), strict=True):
        log_p, log_q = (logits.double().log_softmax(dim=1) for logits in pair)
        kl = functional.kl_div(log_q, log_p, reduction="none", log_target=True)
        divergences.append(kl.sum(dim=1))
    return torch.cat(divergences).view(clean.shape[:-1])


# Sums over the predicted tokens of a document.
COLUMNS = (
    "tokens", "ce_clean", "ce_spliced", "ce_ablated", "ce_ablated_mean", "kl",
    "error_spliced", "error_ablated_mean",
)  # fmt: skip
# Default number of logits per batch: 64 MiB in float32.
BATCH_LOGITS = 1 << 24


def _weights(**columns: float) -> list[float]:
    return [columns.get(name, 0.0) for name in COLUMNS]


_TOKENS = _weights(tokens=1)
RATIOS: Ratios = {
    "ce_clean": (_weights(ce_clean=1), _TOKENS),
    "ce_spliced": (_weights(ce_spliced=1), _TOKENS),
    "ce_delta": (_weights(ce_spliced=1, ce_clean=-1), _TOKENS),
    "ce_ablated": (_weights(ce_ablated=1), _TOKENS),
    "ce_ablated_mean": (_weights(ce_ablated_mean=1), _TOKENS),
    "loss_recovered": (
        _weights(ce_ablated=1, ce_spliced=-1),
        _weights(ce_ablated=1, ce_clean=-1),
    ),
    "loss_recovered_mean": (
        _weights(ce_ablated_mean=1, ce_spliced=-1),
        _weights(ce_ablated_mean=1, ce_clean=-1),
    ),
    "kl": (_weights(kl=1), _TOKENS),
}
# With an `error_site`.
ERROR_RATIOS: Ratios = {
    "site_mse": (_weights(error_spliced=1), _TOKENS),
    "site_recovered": (
        _weights(error_ablated_mean=1, error_spliced=-1),
        _weights(error_ablated_mean=1),
    ),
}


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
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Sum the losses of a model by document, clean and with a site's activations patched.

    Every next token within a context counts, for its own document.

    Args:
        model: The language model.
        site: The site that is patched with reconstruction, zeros, or the mean.
        autoencoder: The autoencoder of raw activations.
        mean: The site's mean, `(width,)`.
        contexts: Token contexts; neighbors of one length are batched.
        skip: Number of leading tokens of each context that are not patched.
        batch_size: Contexts per forward pass; default as many as make 64 MiB of logits.
        share: Of `(n, of)`, take every `of`-th batch, beginning with the `n`-th.
        source_site: Input site of a transcoder, in the same forward pass; default `site`.
        error_site: A further site at which to measure the change of activations.

    Returns:
        The documents in ascending order, `(documents,)`, and their sums, `(documents, columns)`
        with the columns of `COLUMNS`.
    """
    found: dict[int, NDArray[np.float64]] = {}
    patching = _Patching(model, source_site or site, site, autoencoder, mean, skip, error_site)
    vocabulary = int(model.model.config.vocab_size)
    for number, batch in enumerate(_batches(contexts, vocabulary, batch_size)):
        if number % share[1] != share[0]:
            continue
        tokens = torch.from_numpy(np.stack([context.tokens for context in batch])).to(model.device)
        sums = patching.losses(tokens).cpu().numpy()
        documents = np.stack([context.documents for context in batch])[:, 1:].reshape(-1)
        own, places = np.unique(documents, return_inverse=True)
        for index, document in enumerate(own.tolist()):
            found[document] = found.get(document, 0.0) + sums[:, places == index].sum(axis=1)
    order = sorted(found)
    table = np.array([found[document] for document in order]).reshape(-1, len(COLUMNS))
    return np.array(order, dtype=np.int64), table


def sum_over_processes(
    documents: NDArray[np.int64], sums: NDArray[np.float64], device: torch.device
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Sum the documents' sums over the processes; the same on each of them.

    Args:
        documents: This process's documents, `(documents,)`.
        sums: Their sums, `(documents, columns)`.
        device: Device of the collectives.
    """
    rows = torch.from_numpy(np.column_stack([documents.astype(np.float64), sums])).to(device)
    gathered = gather_unequal_rows(rows, world()).cpu().numpy()
    everyone, places = np.unique(gathered[:, 0].astype(np.int64), return_inverse=True)
    total = np.zeros((len(everyone), sums.shape[1]))
    np.add.at(total, places, gathered[:, 1:])
    return everyone, total


@dataclass(frozen=True)
class _Patching:
    """Arguments of `patched_losses`, except for the tokens."""

    model: LanguageModel
    source_site: str
    site: str
    autoencoder: EncodesAndDecodes
    mean: NDArray[np.float64]
    skip: int
    error_site: str | None

    def losses(self, tokens: Tensor) -> Tensor:
        """Values of `COLUMNS` for every predicted token of a batch, `(columns, tokens)`."""
        targets = tokens[:, 1:]
        center = torch.from_numpy(self.mean).to(self.model.device)
        clean, before = self._clean(tokens)
        spliced, after = self._reconstructed(tokens)
        losses = [cross_entropy(clean, targets), cross_entropy(spliced, targets)]
        divergence = kl_divergence(clean, spliced)
        error = _error(before, after, divergence)
        del clean, spliced, after
        for ablation in (torch.zeros_like, lambda x: center.to(x).expand_as(x)):
            ablated, after = self._patched(tokens, ablation)
            losses.append(cross_entropy(ablated, targets))
        ablated_error = _error(before, after, divergence)  # with the mean, which comes last
        values = [torch.ones_like(divergence), *losses, divergence, error, ablated_error]
        return torch.stack([value.flatten() for value in values])

    def _clean(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits, and the activations at the error site."""
        with self._recording(self.error_site, tokens) as recorded:
            logits = self.model.logits(tokens)[:, :-1]
        return logits, recorded[0] if recorded else None

    def _reconstructed(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        reconstruct = as_function(self.autoencoder)
        if self.source_site == self.site:
            return self._patched(tokens, reconstruct)
        with self._recording(self.source_site, tokens) as source:
            return self._patched(tokens, lambda _: reconstruct(source[0][:, self.skip :]))

    def _patched(
        self, tokens: Tensor, replacement: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        def patch(x: Tensor) -> Tensor:
            # Some models run their MLP on all tokens in one row.
            rows = x.reshape(-1, tokens.shape[1], x.shape[-1])
            new = replacement(rows[:, self.skip :]).to(x)
            return torch.cat([rows[:, : self.skip], new], dim=1).view(x.shape)

        with self.model.replaced(self.site, patch):
            return self._clean(tokens)

    @contextmanager
    def _recording(self, site: str | None, tokens: Tensor) -> Iterator[list[Tensor]]:
        """Record a site's activations, `(texts, tokens, width)`, after any patch of it."""
        recorded: list[Tensor] = []

        def record(x: Tensor) -> Tensor:
            recorded[:] = [x.reshape(-1, tokens.shape[1], x.shape[-1])]
            return x

        with nullcontext() if site is None else self.model.replaced(site, record):
            yield recorded


def _error(before: Tensor | None, after: Tensor | None, like: Tensor) -> Tensor:
    """Mean squared change of the activations of every token but the first of each context."""
    if before is None or after is None:
        return torch.zeros_like(like)
    return (before[:, 1:].double() - after[:, 1:].double()).square().mean(dim=-1).to(like)


def _batches(
    contexts: Iterable[Context], vocabulary: int, batch_size: int | None
) -> Iterator[list[Context]]:
    predicted = (context for context in contexts if context.tokens.size > 1)
    for length, alike in groupby(predicted, key=lambda context: context.tokens.size):
        size = batch_size or max(1, BATCH_LOGITS // (vocabulary * length))
        while batch := list(islice(alike, size)):
            yield batch


class LanguageModelMetrics(Callback):
    """Measure loss recovered: a language model's loss with the reconstruction patched in.

    - `ce_clean`: cross-entropy of the next token, in nats, of the model as it is.
    - `ce_spliced`: the same with the site replaced by its reconstruction; `ce_delta`: how much
      more that is.
    - `ce_ablated`, `ce_ablated_mean`: the same with the site replaced by zeros, and by its mean
      over the validation rows.
    - `loss_recovered`: `(ce_ablated - ce_spliced) / (ce_ablated - ce_clean)`, and with
      `ce_ablated_mean` the same as `loss_recovered_mean`.
    - `kl`: mean KL(clean ‖ spliced) of the next-token distributions.
    - `site_mse`, where an `error_site` is given: mean squared difference between the activations
      there, spliced and clean; `site_recovered`: one minus its ratio to that of the mean's.

    They are means over every next token of the first contexts of the validation split; tokens that
    `skip_first` keeps out of the rows keep their own activations. Each has a 95 % interval over
    documents, from 8 documents on; below 40, a message says how far it can be trusted. They are
    logged as `val/ce_clean` (`test/…` while testing) and so on, the intervals as
    `val_interval/ce_clean/low` and `…/high`.

    `validate` and `test` measure by themselves. A `fit` does where it has this callback, at its
    end, and each variant of a sweep. One whose latents are divided over devices cannot.

    Args:
        contexts: Number of contexts; null for all of the validation split.
        every_n_steps: In a fit, also measure every n optimizer steps.
        batch_size: Contexts per forward pass; null for as many as make 64 MiB of logits.
        error_site: A further site, such as that of a later layer, at which to measure how far the
            reconstruction moves the activations.

    Raises:
        InputError: If a number is below 1.

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
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1")
        self.contexts = contexts
        self.every_n_steps = every_n_steps
        self.batch_size = batch_size
        self.error_site = error_site
        self.found: Mapping[str, Interval] = {}
        """The last results; the same on every process."""
        self._last: tuple[int, tuple[int, ...]] = (-1, ())  # step and weights
        self._remark: str | None = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure every n steps."""
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self._last[0]:
            self._during_fit(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the trained weights, unless the last step did."""
        if (trainer.global_step, fingerprint(pl_module)) != self._last:
            self._during_fit(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure a checkpoint."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._log(pl_module, self._measured(trainer, pl_module, "val"))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure a checkpoint."""
        self._log(pl_module, self._measured(trainer, pl_module, "test"))

    def _during_fit(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._last = (trainer.global_step, fingerprint(module))
        values = {
            f"{one.name}/{name}" if one.name else name: value
            for one in iter_models(trainer, module)
            for name, value in self._measured(trainer, one.module, "val").items()
        }
        trainer.callback_metrics.update(values)
        for logger in trainer.loggers:
            logger.log_metrics(
                {name: float(value) for name, value in values.items()}, trainer.global_step
            )

    def _log(self, module: pl.LightningModule, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            # The same on every process.
            module.log(name, value, rank_zero_only=False, sync_dist=False)

    def _measured(
        self, trainer: pl.Trainer, module: pl.LightningModule, split: str
    ) -> dict[str, Tensor]:
        """Measure; values and bounds by the name of their log entry."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return {}
        data = getattr(trainer, "datamodule", None)
        if not isinstance(module, SparseAutoencoderModule) or not isinstance(
            data, ActivationDataModule
        ):
            rank_zero_warn("loss recovered skipped: the data module has no language model")
            return {}
        if module.device_mesh is not None:
            rank_zero_warn(
                "loss recovered skipped, for no device holds all latents: run palinka"
                " validate with the checkpoint on one device"
            )
            return {}
        self.found = self._measure(data, module)
        named = {f"{split}/{name}": interval.value for name, interval in self.found.items()}
        for name, interval in self.found.items():
            if interval.low <= interval.high:  # a few documents have no interval
                named[f"{split}_interval/{name}/low"] = interval.low
                named[f"{split}_interval/{name}/high"] = interval.high
        return {name: torch.tensor(value, device=module.device) for name, value in named.items()}

    def _measure(
        self, data: ActivationDataModule, module: SparseAutoencoderModule
    ) -> dict[str, Interval]:
        group = world()
        rank = 0 if group is None else dist.get_rank(group)
        contexts = islice(data.validation_contexts(), self.contexts)
        training = module.training
        module.eval()
        try:
            documents, sums = patched_losses(
                data.loaded_language_model,
                data.validation_spec.resolved_sites[-1],
                module,
                data.validation_rows.statistics.mean[-data.validation_spec.widths[-1] :],
                track(contexts, "patching", self.contexts) if rank == 0 else contexts,
                skip=data.validation_spec.layout.skip,
                batch_size=self.batch_size,
                share=(rank, world_size(group)),
                source_site=data.validation_spec.resolved_sites[0],
                error_site=self.error_site,
            )
        finally:
            module.train(training)
        documents, sums = sum_over_processes(documents, sums, module.device)
        ratios = RATIOS if self.error_site is None else {**RATIOS, **ERROR_RATIOS}
        remark = interval_remark(len(documents))
        if remark and remark != self._remark:
            rank_zero_info(remark)
        self._remark = remark
        return document_intervals(sums, ratios)
