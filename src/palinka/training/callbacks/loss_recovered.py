"""Language-model loss with patched activations."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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

from palinka.analyses.stats.bootstrap import Interval, Ratios, document_intervals, interval_remark
from palinka.autoencoders.distributed import gather_unequal_rows, world, world_size
from palinka.data import ActivationDataModule, Context
from palinka.errors import InputError, track
from palinka.language_models import LanguageModel
from palinka.language_models.edits import EncodesAndDecodes, as_function
from palinka.training.callbacks.checkpoints import fingerprint
from palinka.training.callbacks.variants import iter_models
from palinka.training.module import SparseAutoencoderModule

# Numbers of one piece, which stay in the processor's cache.
PIECE = 1 << 19


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each next token, in nats.

    Args:
        logits: `(…, vocabulary)`.
        targets: The tokens that came, `(…)`.

    Returns:
        `(…)`, float64.
    """
    rows, wanted = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    losses = [
        _log_sum_exp(piece) - piece.gather(1, tokens[:, None])[:, 0].double()
        for piece, tokens in zip(_pieces(rows), torch.split(wanted, _piece_rows(rows)), strict=True)
    ]
    return torch.cat(losses).view(targets.shape)


def kl_divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL(clean ‖ other) of the next-token distributions at each position, in nats.

    Args:
        clean: Logits, `(…, vocabulary)`.
        other: Logits of the same shape.

    Returns:
        `(…)`, float64; exactly 0 where the logits are the same.
    """
    divergences = []
    pairs = (logits.reshape(-1, logits.shape[-1]) for logits in (clean, other))
    for p, q in zip(*(_pieces(rows) for rows in pairs), strict=True):
        largest = p.amax(dim=1)
        # Relative to the largest one, so that large logits lose no digits.
        weights = (p - largest[:, None]).exp()
        total = weights.sum(dim=1, dtype=torch.float64)
        difference = (weights * (p - q)).sum(dim=1, dtype=torch.float64) / total
        log_p = total.log() + largest.double()
        divergences.append(difference - (log_p - _log_sum_exp(q)))
    return torch.cat(divergences).view(clean.shape[:-1])


def _log_sum_exp(rows: Tensor) -> Tensor:
    largest = rows.amax(dim=1)
    sums = (rows - largest[:, None]).exp().sum(dim=1, dtype=torch.float64)
    return sums.log() + largest.double()


def _pieces(rows: Tensor) -> list[Tensor]:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return [piece.to(dtype) for piece in torch.split(rows, _piece_rows(rows))]


def _piece_rows(rows: Tensor) -> int:
    return max(1, PIECE // rows.shape[1])


# Sums over the predicted tokens of a document.
COLUMNS = (
    "tokens", "ce_clean", "ce_spliced", "ce_ablated", "ce_ablated_mean", "kl",
    "error_spliced", "error_ablated_mean",
)  # fmt: skip
# So many logits are computed at once where no batch size is given: 64 MiB in float32.
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
# Where a further site is looked at.
ERROR_RATIOS: Ratios = {
    "site_mse": (_weights(error_spliced=1), _TOKENS),
    "site_recovered": (
        _weights(error_ablated_mean=1, error_spliced=-1),
        _weights(error_ablated_mean=1),
    ),
}


def splice(
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
    """Sum up the losses of a model as it is, spliced and ablated, document by document.

    Every next token within a context counts, for the document that it belongs to. The first
    `skip` tokens of a context are left as they are in every case: the autoencoder has not been
    trained on their like.

    Args:
        model: The language model.
        site: Where the reconstruction, zeros, or the mean take the place of activations.
        autoencoder: From raw activations to latents and back.
        mean: The site's mean, `(width,)`.
        contexts: Token blocks; neighbors of one length go through the model together.
        skip: How many leading tokens of each context keep their activations.
        batch_size: Contexts per forward pass; as many as make 64 MiB of logits if left out.
        share: Of `(n, of)`, take every `of`-th batch, beginning with the `n`-th.
        source_site: Where a transcoder reads, in the same forward pass; `site` if left out.
        error_site: Where to look at how far activations move from the clean ones, such as that of
            a later block; nowhere if left out.

    Returns:
        The documents in ascending order, `(documents,)`, and their sums, `(documents, columns)`
        with the columns of `COLUMNS`.
    """
    found: dict[int, NDArray[np.float64]] = {}
    run = _Run(model, source_site or site, site, autoencoder, mean, skip, error_site)
    vocabulary = int(model.model.config.vocab_size)
    for number, batch in enumerate(_batches(contexts, vocabulary, batch_size)):
        if number % share[1] != share[0]:
            continue
        tokens = torch.from_numpy(np.stack([block.tokens for block in batch])).to(model.device)
        sums = run.losses(tokens).cpu().numpy()
        documents = np.stack([block.documents for block in batch])[:, 1:].reshape(-1)
        own, places = np.unique(documents, return_inverse=True)
        for document, place in zip(own.tolist(), range(len(own)), strict=True):
            row = sums[:, places == place].sum(axis=1)
            found[document] = found.get(document, 0.0) + row
    order = sorted(found)
    table = (
        np.stack([found[document] for document in order]) if order else np.zeros((0, len(COLUMNS)))
    )
    return np.array(order, dtype=np.int64), table


def of_all_processes(
    documents: NDArray[np.int64], sums: NDArray[np.float64], device: torch.device
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Add up the documents' sums over the processes; the same on each of them.

    Args:
        documents: This process's documents, `(documents,)`.
        sums: Their sums, `(documents, columns)`.
        device: Where the processes exchange tensors.
    """
    rows = torch.from_numpy(np.column_stack([documents.astype(np.float64), sums])).to(device)
    gathered = gather_unequal_rows(rows, world()).cpu().numpy()
    everyone, places = np.unique(gathered[:, 0].astype(np.int64), return_inverse=True)
    total = np.zeros((len(everyone), sums.shape[1]))
    np.add.at(total, places, gathered[:, 1:])
    return everyone, total


@dataclass(frozen=True)
class _Run:
    """What `splice` is given, but for the tokens."""

    model: LanguageModel
    source_site: str
    site: str
    autoencoder: EncodesAndDecodes
    mean: NDArray[np.float64]
    skip: int
    error_site: str | None

    def losses(self, tokens: Tensor) -> Tensor:
        """What `COLUMNS` sums up, for every predicted token of a batch, `(columns, tokens)`."""
        targets = tokens[:, 1:]
        center = torch.from_numpy(self.mean).to(self.model.device)
        clean, before = self._clean(tokens)
        spliced, after = self._spliced(tokens)
        losses = [cross_entropy(clean, targets), cross_entropy(spliced, targets)]
        divergence = kl_divergence(clean, spliced)
        error = _error(before, after, divergence)
        del clean, spliced, after
        for ablation in (torch.zeros_like, lambda x: center.to(x).expand_as(x)):
            ablated, after = self._replaced(tokens, ablation)
            losses.append(cross_entropy(ablated, targets))
        ablated_error = _error(before, after, divergence)  # with the mean, which comes last
        values = [torch.ones_like(divergence), *losses, divergence, error, ablated_error]
        return torch.stack([value.flatten() for value in values])

    def _clean(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        with self._noting(self.error_site, tokens) as noted:
            logits = self.model.logits(tokens)[:, :-1]
        return logits, noted[0] if noted else None

    def _spliced(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        reconstruct = as_function(self.autoencoder)
        if self.source_site == self.site:
            return self._replaced(tokens, reconstruct)
        with self._noting(self.source_site, tokens) as source:
            return self._replaced(tokens, lambda _: reconstruct(source[0][:, self.skip :]))

    def _replaced(
        self, tokens: Tensor, replacement: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        kept = _from(self.skip, tokens.shape[1], replacement)
        with self.model.replaced(self.site, kept):
            return self._clean(tokens)

    @contextmanager
    def _noting(self, site: str | None, tokens: Tensor) -> Iterator[list[Tensor]]:
        """Keep what the model goes on with at a site, `(texts, tokens, width)`, in a list."""
        noted: list[Tensor] = []

        def note(x: Tensor) -> Tensor:
            noted[:] = [x.reshape(-1, tokens.shape[1], x.shape[-1])]
            return x

        if site is None:
            yield noted
        else:
            with self.model.replaced(site, note):
                yield noted


def _error(before: Tensor | None, after: Tensor | None, like: Tensor) -> Tensor:
    """The mean squared change of the activations of every token but the first of each context."""
    if before is None or after is None:
        return torch.zeros_like(like)
    return (before[:, 1:].double() - after[:, 1:].double()).square().mean(dim=-1).to(like)


def _from(
    skip: int, tokens: int, replacement: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """A replacement that leaves the first tokens of each context as they are."""

    def replace(x: Tensor) -> Tensor:
        # Some models run their MLP on all tokens in one row.
        rows = x.reshape(-1, tokens, x.shape[-1])
        new = replacement(rows[:, skip:]).to(x)
        return torch.cat([rows[:, :skip], new], dim=1).view(x.shape)

    return replace


def _batches(
    contexts: Iterable[Context], vocabulary: int, batch_size: int | None
) -> Iterator[list[Context]]:
    predicted = (block for block in contexts if block.tokens.size > 1)
    for length, alike in groupby(predicted, key=lambda block: block.tokens.size):
        size = batch_size or max(1, BATCH_LOGITS // (vocabulary * length))
        while batch := list(islice(alike, size)):
            yield batch


class LanguageModelMetrics(Callback):
    """Splices the reconstruction into the language model, and measures what it predicts then.

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
        contexts: Measure so many contexts; null for all of the validation split.
        every_n_steps: In a fit, also measure after every so many optimizer steps.
        batch_size: Contexts per forward pass; null for as many as make 64 MiB of logits.
        error_site: A site, such as that of a later block, where to look at how far the
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
        """What was measured last; the same on every process."""
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
        """Measure where it is time to."""
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self._last[0]:
            self._during_fit(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure what was trained, unless the last step did."""
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
        """Every value and bound by the name that it is logged under; none where there are none."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return {}
        data = getattr(trainer, "datamodule", None)
        if not isinstance(module, SparseAutoencoderModule) or not isinstance(
            data, ActivationDataModule
        ):
            rank_zero_warn("not judged in the language model: the data module names none")
            return {}
        if module.device_mesh is not None:
            rank_zero_warn(
                "not judged in the language model, for no device holds all latents: run palinka"
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
            documents, sums = splice(
                data.loaded_language_model,
                data.validation_spec.resolved_sites[-1],
                module,
                data.validation_rows.statistics.mean[-data.validation_spec.widths[-1] :],
                track(contexts, "splicing", self.contexts) if rank == 0 else contexts,
                skip=data.validation_spec.layout.skip,
                batch_size=self.batch_size,
                share=(rank, world_size(group)),
                source_site=data.validation_spec.resolved_sites[0],
                error_site=self.error_site,
            )
        finally:
            module.train(training)
        documents, sums = of_all_processes(documents, sums, module.device)
        ratios = RATIOS if self.error_site is None else {**RATIOS, **ERROR_RATIOS}
        remark = interval_remark(len(documents))
        if remark and remark != self._remark:
            rank_zero_info(remark)
        self._remark = remark
        return document_intervals(sums, ratios)
