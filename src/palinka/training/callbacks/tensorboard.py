"""TensorBoard layout, histograms and throughput."""

import struct
import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import torch
from lightning.fabric.utilities.logger import _flatten_dict, _sanitize_params
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.image import metadata
from tensorboard.util import tensor_util
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from palinka.analyses.findings import Findings
from palinka.training.callbacks.base import VariantLogger, iter_models, log_folder
from palinka.training.callbacks.loss_recovered import LanguageModelMetrics
from palinka.training.losses import default_terms, loss_function

CHARTS = {
    "training loss (MSE; of TopK kinds FVU)": ["loss/total"],
    "penalties in the loss": ["loss/sparsity", "loss/decorrelation", "loss/auxiliary"],
    "variance unexplained (FVU), training and validation": ["reconstruction/fvu", "val/fvu"],
    "active latents per token (L0), training and validation": ["sparsity/l0", "val/l0"],
    "dead latents in training (share)": ["sparsity/dead"],
    "latents silent on the validation text (share)": ["val/dead"],
    "increase of the cross-entropy (nats per token)": ["val/ce_delta"],
    "training speed (tokens per second)": ["throughput/tokens_per_second"],
    "share of time spent waiting for data": ["throughput/loader_wait"],
}


def layout(trainer: Trainer, module: LightningModule) -> dict[str, dict[str, Any]]:
    """Custom-scalars page of a run, without charts that would be empty or at zero."""
    models = [one.module for one in iter_models(trainer, module)]
    weights = [(m.objective.sparsity_weight, m.objective.decorrelation_weight) for m in models]
    own = any(loss_function(m.autoencoder) is not default_terms for m in models)
    spliced = any(isinstance(c, LanguageModelMetrics) for c in trainer.callbacks)  # type: ignore[attr-defined]
    shown = {"loss/sparsity": own or any(map(any, weights)), "val/ce_delta": spliced}
    # Tags are regular expressions for a tag's beginning: `val/fvu` would match `val/fvu_legacy`.
    charts = {
        title: ("Multiline", [f"{tag}$" for tag in tags])
        for title, tags in CHARTS.items()
        if shown.get(tags[0], True)
    }
    return {"overview": charts}


def tensorboard_writers(trainer: Trainer, *, variants: bool = False) -> Iterator[SummaryWriter]:
    """Event writers of a run, on the process that logs; also of a sweep's variants if wanted."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        wanted = variants or not isinstance(logger, VariantLogger)
        if wanted and isinstance(logger, TensorBoardLogger):
            yield logger.experiment


def add_figure(writer: SummaryWriter, tag: str, figure: Figure, step: int) -> None:
    """Log a figure with its caption, for TensorBoard's IMAGES page."""
    png = BytesIO()
    figure.savefig(png, format="png", dpi=figure.dpi)
    # Width and height, at a fixed offset of a PNG.
    size = [str(number).encode() for number in struct.unpack(">II", png.getvalue()[16:24])]
    # TensorBoard's tensor format; torch writes the older one, whose captions are not shown.
    described = metadata.create_summary_metadata(tag, str(figure.get_label()))
    tensor = tensor_util.make_tensor_proto([*size, png.getvalue()])
    events: Any = writer
    events._get_file_writer().add_summary(
        Summary(value=[Summary.Value(tag=tag, metadata=described, tensor=tensor)]), step
    )


def write_findings(findings: Findings, trainer: Trainer) -> None:
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


class TensorBoardDashboard(Callback):
    """Log TensorBoard's custom-scalars layout, and final results with the hyper-parameters.

    The HPARAMS tab compares the last values of `val/…` of runs; each variant of a sweep is one.
    """

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Log the layout."""
        for writer in tensorboard_writers(trainer, variants=True):
            writer.add_custom_scalars(layout(trainer, module))

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log hyper-parameters and the last validation's results."""
        for one in iter_models(trainer, module):
            results = {n: float(value) for n, value in one.metrics.items() if n.startswith("val/")}
            seed = {name: one.overrides[name] for name in ("seed",) if name in one.overrides}
            for logger in one.loggers if results and trainer.is_global_zero else ():
                settings = _sanitize_params(_flatten_dict({**one.module.hparams, **seed}))
                # The logger's method would log the results once more, as curves of one point.
                for summary in hparams(settings, results):  # type: ignore[no-untyped-call]
                    logger.experiment._get_file_writer().add_summary(summary)


class FeatureHistograms(Callback):
    """Log two histograms over latents to TensorBoard after every validation.

    - `latents/log10_firing_frequency`: of the latents that fired on the validation split.
    - `latents/nearest_cosine`: the largest cosine of a latent's direction with another's, for
      at most 2,048 evenly spaced latents; of a sharded dictionary, within the first shard.
    """

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log both, on the process that logs."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for one in iter_models(trainer, module):
            # No collectives, as the other processes are not here: the density was reduced when the
            # module logged it.
            density = one.module.evaluation.sparsity.compute()["density"]
            dictionary = one.module.autoencoder.dictionary.detach()
            local = dictionary.to_local() if isinstance(dictionary, DTensor) else dictionary
            frequency, nearest = density[density > 0].log10(), nearest_cosine(local)
            for logger in one.loggers:
                writer, step = logger.experiment, trainer.global_step
                if len(frequency):
                    writer.add_histogram("latents/log10_firing_frequency", frequency, step)
                writer.add_histogram("latents/nearest_cosine", nearest, step)


def nearest_cosine(dictionary: Tensor, sample: int = 2048) -> Tensor:
    """Largest cosine of evenly spaced directions with any other of `(latents, width)`.

    The cosines are `(min(sample, latents),)`.
    """
    directions = functional.normalize(dictionary.float(), dim=1)
    latents = len(directions)
    chosen = torch.linspace(0, latents - 1, min(sample, latents), device=directions.device).long()
    cosines = directions[chosen] @ directions.T
    cosines[torch.arange(len(chosen), device=cosines.device), chosen] = -torch.inf
    return cosines.amax(dim=1)


class ThroughputMonitor(Callback):
    """Log `throughput/tokens_per_second` and `throughput/loader_wait` while training.

    The rate counts the rows of all devices. The wait is the share of time, between 0 and
    1, spent waiting for the next batch. Neither synchronizes with the device.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart counting; validation is not counted."""
        self._since, self._rows = time.perf_counter(), 0
        self._waited = self._wait_seconds(trainer)

    on_train_epoch_start = on_validation_end = on_train_start

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Tensor, *_: Any
    ) -> None:
        """Count the batch, and log where the trainer logs."""
        self._rows += batch.shape[0]
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every == 0 or trainer.global_step % every:
            return
        elapsed = time.perf_counter() - self._since
        waited = self._wait_seconds(trainer) - self._waited
        # Processes that shard the latents share their rows.
        replicas = (trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)
        module.log("throughput/tokens_per_second", self._rows * replicas / elapsed, prog_bar=True)
        module.log("throughput/loader_wait", min(1.0, waited / elapsed))
        self.on_train_start(trainer, module)

    def _wait_seconds(self, trainer: Trainer) -> float:
        """Total waiting time of the training loader; 0 for a loader that does not count it."""
        return float(getattr(trainer.train_dataloader, "wait_seconds", 0.0))
