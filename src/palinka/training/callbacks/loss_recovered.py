"""Language-model loss with patched activations."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
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

from palinka.analyses.stats.bootstrap import Interval, Ratios, document_intervals, interval_remark
from palinka.autoencoders.base import positive_integer
from palinka.autoencoders.distributed import gather_unequal_rows, world, world_size
from palinka.data import Context
from palinka.errors import track
from palinka.language_models import LanguageModel
from palinka.language_models.edits import EncodesAndDecodes, as_function
from palinka.language_models.sites import following
from palinka.training.callbacks.checkpoints import fingerprint
from palinka.training.callbacks.variants import EveryNSteps, evaluating, iter_models, single_model

# Logits per chunk, which stay in the processor's cache as float64.
CHUNK_LOGITS = 1 << 19
# Default number of logits per batch: 64 MiB in float32.
BATCH_LOGITS = 1 << 24
Sums = tuple[NDArray[np.int64], NDArray[np.float64]]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each next token `(…)` under logits `(…, vocabulary)`, in nats, float64."""

    def losses(x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(x.double(), y, reduction="none")

    return _in_chunks(losses, logits.flatten(0, -2), targets.flatten()).view(targets.shape)


def kl_divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL(clean ‖ other) of each position's logits `(…, vocabulary)`, in nats, float64."""

    def divergences(*pair: Tensor) -> Tensor:
        log_p, log_q = (logits.double().log_softmax(dim=1) for logits in pair)
        return functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)

    kl = _in_chunks(divergences, clean.flatten(0, -2), other.flatten(0, -2))
    return kl.view(clean.shape[:-1])


def _in_chunks(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    size = max(1, CHUNK_LOGITS // rows[0].shape[-1])
    chunks = zip(*(torch.split(tensor, size) for tensor in rows), strict=True)
    return torch.cat([function(*chunk) for chunk in chunks])


# Sums over the predicted tokens of a document.
COLUMNS = (
    "tokens", "ce_clean", "ce_spliced", "ce_ablated", "ce_ablated_mean", "kl",
    "error_spliced", "error_ablated_mean",
)  # fmt: skip


def _weights(terms: str) -> list[float]:
    """Weights of `COLUMNS` in one of them, or in a difference such as `ce_spliced - ce_clean`."""
    plus, _, minus = terms.partition(" - ")
    return [float(name == plus) - float(name == minus) for name in COLUMNS]


def _ratios(**named: tuple[str, str]) -> Ratios:
    return {name: (_weights(above), _weights(below)) for name, (above, below) in named.items()}


RATIOS = _ratios(
    ce_clean=("ce_clean", "tokens"),
    ce_spliced=("ce_spliced", "tokens"),
    ce_delta=("ce_spliced - ce_clean", "tokens"),
    ce_ablated=("ce_ablated", "tokens"),
    ce_ablated_mean=("ce_ablated_mean", "tokens"),
    loss_recovered=("ce_ablated - ce_spliced", "ce_ablated - ce_clean"),
    loss_recovered_mean=("ce_ablated_mean - ce_spliced", "ce_ablated_mean - ce_clean"),
    kl=("kl", "tokens"),
)
# With an `error_site`.
ERROR_RATIOS = _ratios(
    site_mse=("error_spliced", "tokens"),
    site_recovered=("error_ablated_mean - error_spliced", "error_ablated_mean"),
)


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
    center = torch.from_numpy(mean).to(model.device)
    source_site = None if source_site == site else source_site
    found = [(np.empty(0, dtype=np.int64), np.empty((0, len(COLUMNS))))]
    for batch in islice(_batches(contexts, model, batch_size), share[0], None, share[1]):
        tokens = torch.from_numpy(np.stack([context.tokens for context in batch])).to(model.device)
        targets = tokens[:, 1:]
        run = partial(_patched, model, tokens, site, skip, error_site)
        clean, before = run()
        spliced, after = run(as_function(autoencoder), source_site)
        values = {
            "tokens": torch.ones_like(targets),
            "ce_clean": cross_entropy(clean, targets),
            "ce_spliced": cross_entropy(spliced, targets),
            "kl": kl_divergence(clean, spliced),
            "error_spliced": (after - before).square().mean(dim=-1),
        }
        del clean, spliced
        values["ce_ablated"] = cross_entropy(run(torch.zeros_like)[0], targets)
        ablated, after = run(lambda x: center.to(x).expand_as(x))
        values["ce_ablated_mean"] = cross_entropy(ablated, targets)
        values["error_ablated_mean"] = (after - before).square().mean(dim=-1)
        table = torch.stack([values[name].double().flatten() for name in COLUMNS], dim=1)
        documents = np.stack([context.documents[1:] for context in batch]).ravel()
        found.append(_sum_by_document(documents, table.cpu().numpy()))
    parts, sums = zip(*found, strict=True)
    return _sum_by_document(np.concatenate(parts), np.concatenate(sums))


def sum_over_processes(
    documents: NDArray[np.int64], sums: NDArray[np.float64], device: torch.device
) -> Sums:
    """Sum `patched_losses` over the processes, by a collective; the same on each of them."""
    rows = torch.from_numpy(np.column_stack([documents.astype(np.float64), sums])).to(device)
    gathered = gather_unequal_rows(rows, world()).cpu().numpy()
    return _sum_by_document(gathered[:, 0].astype(np.int64), gathered[:, 1:])


def _sum_by_document(documents: NDArray[np.int64], rows: NDArray[np.float64]) -> Sums:
    own, places = np.unique(documents, return_inverse=True)
    sums = np.zeros((len(own), rows.shape[1]))
    np.add.at(sums, places, rows)
    return own, sums


def _patched(
    model: LanguageModel,
    tokens: Tensor,
    site: str,
    skip: int,
    error_site: str | None,
    replacement: Callable[[Tensor], Tensor] | None = None,
    source_site: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits of next tokens, and their activations at the error site, with a site patched."""

    def by_token(x: Tensor) -> Tensor:  # some models run their MLP on all tokens in one row
        return x.reshape(-1, tokens.shape[1], x.shape[-1])

    def follow(name: str) -> AbstractContextManager[Callable[[], Tensor]]:
        return following(model.model, model.spec.sites.tap(name))

    with ExitStack() as hooks:
        if replacement is not None:
            source = None if source_site is None else hooks.enter_context(follow(source_site))

            def patch(x: Tensor) -> Tensor:
                rows = by_token(x)
                read = rows if source is None else by_token(source())
                new = replacement(read[:, skip:]).to(x)
                return torch.cat([rows[:, :skip], new], dim=1).view(x.shape)

            hooks.enter_context(model.replaced(site, patch))
        moved = None if error_site is None else hooks.enter_context(follow(error_site))
        logits = model.logits(tokens)[:, :-1]
        error = tokens.new_zeros(*tokens.shape, 1) if moved is None else by_token(moved())
    return logits, error[:, 1:].double()


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
        self.found: Mapping[str, Interval] = {}
        """The last results; the same on every process."""
        self._last: tuple[int, tuple[int, ...]] = (-1, ())  # step and weights
        self._remark: str | None = None

    def at_step(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure and log the weights of a step, of every variant of a sweep."""
        self._last = (trainer.global_step, fingerprint(module))
        values = {
            f"{one.name}/{name}" if one.name else name: value
            for one in iter_models(trainer, module)
            for name, value in self._measured(trainer, one.module, "val").items()
        }
        trainer.callback_metrics.update(values)
        scalars = {name: float(value) for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(scalars, trainer.global_step)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure the trained weights, unless the last step did."""
        if (trainer.global_step, fingerprint(module)) != self._last:
            self.at_step(trainer, module)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure a checkpoint."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._log(trainer, module, "val")

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure a checkpoint."""
        self._log(trainer, module, "test")

    def _log(self, trainer: Trainer, module: LightningModule, split: str) -> None:
        for name, value in self._measured(trainer, module, split).items():
            # The same on every process.
            module.log(name, value, rank_zero_only=False, sync_dist=False)

    def _measured(self, trainer: Trainer, module: LightningModule, split: str) -> dict[str, Tensor]:
        """Values and bounds by the name of their log entry."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return {}
        found = single_model(self, trainer, module)
        if found is None:
            return {}
        autoencoder, data = found
        spec, group = data.validation_spec, world()
        rank = 0 if group is None else dist.get_rank(group)
        contexts = islice(data.validation_contexts(), self.contexts)
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
        documents, sums = sum_over_processes(documents, sums, module.device)
        remark = interval_remark(len(documents))
        if remark and remark != self._remark:
            rank_zero_info(remark)
        self._remark = remark
        ratios = RATIOS if self.error_site is None else {**RATIOS, **ERROR_RATIOS}
        self.found = document_intervals(sums, ratios)
        named = {f"{split}/{name}": interval.value for name, interval in self.found.items()}
        for name, interval in self.found.items():
            if interval.low <= interval.high:  # a few documents have no interval
                named[f"{split}_interval/{name}/low"] = interval.low
                named[f"{split}_interval/{name}/high"] = interval.high
        return {name: torch.tensor(value, device=module.device) for name, value in named.items()}
