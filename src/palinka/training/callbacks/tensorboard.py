"""TensorBoard layout, histograms and throughput."""

import struct
import time
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.image import metadata
from tensorboard.util import tensor_util
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.utils.tensorboard import SummaryWriter

from palinka.analyses.findings import Findings
from palinka.training.callbacks.variants import VariantLogger, iter_models

# Category -> chart -> (kind, tags), as `SummaryWriter.add_custom_scalars` takes it. Tags are
# regular expressions for a tag's beginning: `val/fvu` would bring `val/fvu_legacy` along.
LAYOUT: dict[str, dict[str, tuple[str, list[str]]]] = {
    "the story of the run": {
        "loss and its parts": (
            "Multiline",
            [
                "loss/total$",
                "loss/reconstruction$",
                "loss/sparsity$",
                "loss/decorrelation$",
                "loss/auxiliary$",
            ],
        ),
        "fraction of variance unexplained": ("Multiline", ["reconstruction/fvu$", "val/fvu$"]),
        "latents per token": ("Multiline", ["sparsity/l0$", "val/l0$"]),
        "dead latents": ("Multiline", ["sparsity/dead$", "val/dead$"]),
        "increase of the cross-entropy (nats), where measured": ("Multiline", ["val/ce_delta$"]),
        "tokens per second": ("Multiline", ["throughput/tokens_per_second$"]),
        "share of time spent waiting for data": ("Multiline", ["throughput/loader_wait$"]),
    },
}


def tensorboard_writers(trainer: pl.Trainer) -> Iterator[SummaryWriter]:
    """The event writers of the run's TensorBoard loggers, on the process that logs."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, TensorBoardLogger) and not isinstance(logger, VariantLogger):
            yield logger.experiment


def add_figure(writer: SummaryWriter, tag: str, figure: Figure, step: int) -> None:
    """Log a figure under a tag, with its caption, which TensorBoard's IMAGES page has beside it."""
    png = BytesIO()
    figure.savefig(png, format="png", dpi=figure.dpi)
    # Width and height stand at a fixed place of the file.
    size = [str(number).encode() for number in struct.unpack(">II", png.getvalue()[16:24])]
    # In the form that TensorBoard itself writes now; its server takes no caption of the older form,
    # which torch writes.
    described = metadata.create_summary_metadata(tag, str(figure.get_label()))
    value = Summary.Value(
        tag=tag, metadata=described, tensor=tensor_util.make_tensor_proto([*size, png.getvalue()])
    )
    events: Any = writer
    events._get_file_writer().add_summary(Summary(value=[value]), step)


def log_findings(findings: Findings, trainer: pl.Trainer, step: int) -> None:
    """Log the numbers of an analysis to every logger, and figures and text to TensorBoard."""
    prefix = f"analyses/{findings.name}"
    scalars = {f"{prefix}/{name}": value for name, value in findings.scalars().items()}
    for logger in trainer.loggers:
        logger.log_metrics(scalars, step)
    for writer in tensorboard_writers(trainer):
        for name, figure in findings.figures.items():
            add_figure(writer, f"{prefix}/{name}", figure, step)
        if findings.results or findings.summary:
            writer.add_text(prefix, findings.markdown(), step)


def all_writers(trainer: pl.Trainer) -> Iterator[SummaryWriter]:
    """Those of the run, and those of a sweep's variants."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, TensorBoardLogger):
            yield logger.experiment


class TensorBoardDashboard(Callback):
    """Lays out the custom-scalars page, and ends a run with its hyper-parameters and results.

    The results stand beside the hyper-parameters as `final/…`, so that runs can be compared
    in TensorBoard's HPARAMS tab; each variant of a sweep has its own. Other loggers are left alone.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the layout of the custom-scalars page."""
        for writer in all_writers(trainer):
            writer.add_custom_scalars(LAYOUT)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the hyper-parameters together with the last validation's results."""
        if not trainer.is_global_zero:
            return
        for one in iter_models(trainer, pl_module):
            results = {
                f"final/{name.removeprefix('val/')}": float(value)
                for name, value in one.metrics.items()
                if name.startswith("val/")
            }
            settings = dict(flattened({**one.module.hparams, **one.seed}))
            for logger in one.loggers if results else ():
                if isinstance(logger, TensorBoardLogger):
                    logger.log_hyperparams(settings, results)


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as `outer/inner` names with values that TensorBoard can show."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}/")
        else:
            shown = isinstance(value, (bool, int, float, str, torch.Tensor))
            yield f"{prefix}{name}", value if shown else str(value)


# Enough latents for a histogram; all pairs of a large dictionary would take longer than an epoch.
SAMPLE = 2048


class FeatureHistograms(Callback):
    """Writes two histograms to TensorBoard after every validation, one value per latent.

    - `latents/log10_firing_frequency`: of the latents that fired on the validation split.
    - `latents/nearest_cosine`: the largest cosine of a latent's direction with another's, for
      at most 2,048 latents drawn evenly from the dictionary; of one divided over devices, within
      the first device's slice.
    """

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write both, on the process that logs."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for one in iter_models(trainer, pl_module):
            # Reduced over processes and kept since the module logged it: no collective here.
            density = one.module.evaluation.sparsity.compute()["density"]
            fired = density[density > 0]
            dictionary = one.module.autoencoder.dictionary.detach()
            if isinstance(dictionary, DTensor):  # the other processes are not here to be asked
                dictionary = dictionary.to_local()
            for writer in one.writers:
                step = trainer.global_step
                if len(fired):
                    writer.add_histogram("latents/log10_firing_frequency", fired.log10(), step)
                cosine = nearest_cosine(dictionary)
                writer.add_histogram("latents/nearest_cosine", cosine, step)


def nearest_cosine(dictionary: Tensor, sample: int = SAMPLE) -> Tensor:
    """The largest cosine of each direction with another one of the dictionary.

    Args:
        dictionary: Directions, `(latents, width)`.
        sample: For at most so many latents, taken at even steps.

    Returns:
        Cosines, `(min(sample, latents),)`; of a single latent, NaN.
    """
    directions = functional.normalize(dictionary.float(), dim=1)
    latents = len(directions)
    chosen = torch.linspace(0, latents - 1, min(sample, latents), device=directions.device).long()
    cosines = directions[chosen] @ directions.T
    cosines[torch.arange(len(chosen), device=cosines.device), chosen] = -torch.inf
    nearest = cosines.amax(dim=1)
    return nearest.where(nearest.isfinite(), torch.nan)


class ThroughputMonitor(Callback):
    """Logs `throughput/tokens_per_second` and `throughput/loader_wait` while training.

    The rate counts the rows of all devices. The wait is the share of the time, between 0 and
    1, in which the step stood still because the next batch was not there yet. Neither asks
    the device for anything, so nothing is slowed down by being watched.
    """

    def __init__(self) -> None:
        self._since = 0.0
        self._rows = 0
        self._waited = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting; validation between epochs is no part of the rate."""
        self._restart(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting again after a validation in the middle of an epoch."""
        self._restart(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: torch.Tensor,
        batch_idx: int,
    ) -> None:
        """Count the batch, and log where the trainer logs."""
        self._rows += batch.shape[0]
        # Lightning's own rule of when it passes values on to the loggers.
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every == 0 or trainer.global_step % every:
            return
        elapsed = time.perf_counter() - self._since
        waited = _seconds_waited(trainer) - self._waited
        pl_module.log(
            "throughput/tokens_per_second",
            self._rows * _shares(trainer) / elapsed,
            prog_bar=True,
        )
        pl_module.log("throughput/loader_wait", min(1.0, waited / elapsed))
        self._restart(trainer)

    def _restart(self, trainer: pl.Trainer) -> None:
        self._since = time.perf_counter()
        self._rows = 0
        self._waited = _seconds_waited(trainer)


def _shares(trainer: pl.Trainer) -> int:
    """How many processes have rows of their own; those that divide the latents share theirs."""
    share = trainer.distributed_sampler_kwargs
    return share["num_replicas"] if share else 1


def _seconds_waited(trainer: pl.Trainer) -> float:
    """What the training loader has waited so far; 0 for a loader that does not say."""
    return float(getattr(trainer.train_dataloader, "wait_seconds", 0.0))
