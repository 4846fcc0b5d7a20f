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
from palinka.training.callbacks.summary import log_folder
from palinka.training.callbacks.variants import VariantLogger, iter_models

# Category -> chart -> (kind, tags), as `SummaryWriter.add_custom_scalars` takes it. Tags are
# regular expressions for a tag's beginning: `val/fvu` would match `val/fvu_legacy`.
LAYOUT: dict[str, dict[str, tuple[str, list[str]]]] = {
    "overview": {
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
    """Event writers of the run's TensorBoard loggers, on the process that logs."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, TensorBoardLogger) and not isinstance(logger, VariantLogger):
            yield logger.experiment


def add_figure(writer: SummaryWriter, tag: str, figure: Figure, step: int) -> None:
    """Log a figure with its caption, for TensorBoard's IMAGES page."""
    png = BytesIO()
    figure.savefig(png, format="png", dpi=figure.dpi)
    # Width and height, at a fixed offset of a PNG.
    size = [str(number).encode() for number in struct.unpack(">II", png.getvalue()[16:24])]
    # TensorBoard's tensor format; torch writes the older one, whose captions are not shown.
    described = metadata.create_summary_metadata(tag, str(figure.get_label()))
    value = Summary.Value(
        tag=tag, metadata=described, tensor=tensor_util.make_tensor_proto([*size, png.getvalue()])
    )
    events: Any = writer
    events._get_file_writer().add_summary(Summary(value=[value]), step)


def write_findings(findings: Findings, trainer: pl.Trainer) -> None:
    """Write findings to the log folder, numbers to every logger, and figures to TensorBoard."""
    findings.write(log_folder(trainer) / "analyses")
    prefix = f"analyses/{findings.name}"
    scalars = {f"{prefix}/{name}": value for name, value in findings.scalars().items()}
    for logger in trainer.loggers:
        logger.log_metrics(scalars, trainer.global_step)
    for writer in tensorboard_writers(trainer):
        for name, figure in findings.figures.items():
            add_figure(writer, f"{prefix}/{name}", figure, trainer.global_step)
        if findings.results or findings.summary:
            writer.add_text(prefix, findings.markdown(), trainer.global_step)


def all_writers(trainer: pl.Trainer) -> Iterator[SummaryWriter]:
    """Event writers of the run and of a sweep's variants, on the process that logs."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, TensorBoardLogger):
            yield logger.experiment


class TensorBoardDashboard(Callback):
    """Log TensorBoard's custom-scalars layout, and final results with the hyper-parameters.

    Results are named `final/…`, so that runs can be compared in TensorBoard's HPARAMS tab; each
    variant of a sweep has its own.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the layout."""
        for writer in all_writers(trainer):
            writer.add_custom_scalars(LAYOUT)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log hyper-parameters and the last validation's results."""
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
    """Flatten nested settings to `outer/inner` names, with values that TensorBoard can show."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}/")
        else:
            shown = isinstance(value, (bool, int, float, str, torch.Tensor))
            yield f"{prefix}{name}", value if shown else str(value)


# All pairs of a large dictionary would take longer than an epoch.
SAMPLE = 2048


class FeatureHistograms(Callback):
    """Log two histograms over latents to TensorBoard after every validation.

    - `latents/log10_firing_frequency`: of the latents that fired on the validation split.
    - `latents/nearest_cosine`: the largest cosine of a latent's direction with another's, for
      at most 2,048 evenly spaced latents; of a sharded dictionary, within the first shard.
    """

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log both, on the process that logs."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for one in iter_models(trainer, pl_module):
            # Reduced over processes and kept since the module logged it: no collective here.
            density = one.module.evaluation.sparsity.compute()["density"]
            fired = density[density > 0]
            dictionary = one.module.autoencoder.dictionary.detach()
            if isinstance(dictionary, DTensor):  # no collective: the other processes are not here
                dictionary = dictionary.to_local()
            for writer in one.writers:
                step = trainer.global_step
                if len(fired):
                    writer.add_histogram("latents/log10_firing_frequency", fired.log10(), step)
                cosine = nearest_cosine(dictionary)
                writer.add_histogram("latents/nearest_cosine", cosine, step)


def nearest_cosine(dictionary: Tensor, sample: int = SAMPLE) -> Tensor:
    """Largest cosine of each direction with another one of the dictionary.

    Args:
        dictionary: Directions, `(latents, width)`.
        sample: Maximum number of latents, evenly spaced.

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
    """Log `throughput/tokens_per_second` and `throughput/loader_wait` while training.

    The rate counts the rows of all devices. The wait is the share of time, between 0 and
    1, spent waiting for the next batch. Neither synchronizes with the device.
    """

    def __init__(self) -> None:
        self._since = 0.0
        self._rows = 0
        self._waited = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting; validation between epochs is not counted."""
        self._restart(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restart counting after a validation in the middle of an epoch."""
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
    """Number of processes with different rows; those that shard the latents share theirs."""
    share = trainer.distributed_sampler_kwargs
    return share["num_replicas"] if share else 1


def _seconds_waited(trainer: pl.Trainer) -> float:
    """Total waiting time of the training loader; 0 for a loader without `wait_seconds`."""
    return float(getattr(trainer.train_dataloader, "wait_seconds", 0.0))
