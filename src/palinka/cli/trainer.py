"""Trainer of the command line."""

import logging
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import callbacks as pl_callbacks
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from palinka.data import ActivationDataModule
from palinka.errors import InputError, refresh_seconds
from palinka.language_models.cpu import slow_products
from palinka.training.callbacks import LanguageModelMetrics
from palinka.training.callbacks.checkpoints import MEASURED_AT, FinalWeights
from palinka.training.checkpoint import DurableCheckpointIO, check_strategy

_IGNORED_WARNINGS = (
    ".*does not have many workers.*",  # the loader reads ahead in a thread
    ".*LeafSpec.*",  # between Lightning and a newer torch
    ".*Previous log files in this directory will be deleted.*",  # the rows before stay
    ".*LightningCLI's args parameter.*",
    ".*callbacks used to create the checkpoint.*",  # measuring needs none of its fit
)
# Names of metrics in the progress bar.
SHORT = {
    "loss/total": "loss",
    "reconstruction/fvu": "FVU",
    "val/fvu": "validation FVU",
    "throughput/tokens_per_second": "tokens/s",
}
# Lightning's callbacks that cannot work here as documented, with the reason.
UNSUPPORTED: dict[type[Callback], str] = {
    pl_callbacks.BackboneFinetuning: "an autoencoder has no backbone; freeze parts of it with a"
    " BaseFinetuning",
    pl_callbacks.BatchSizeFinder: "it would change what is trained, and tries sizes beyond the"
    " training rows; compare some with --data.batch_size and --trainer.max_steps 3",
    pl_callbacks.LearningRateFinder: "it cannot set the learning rate, an option of the optimizer;"
    " compare some with --model.optimizer.lr and --trainer.max_steps 100",
    pl_callbacks.ModelPruning: "it replaces a parameter by a product of weight and mask, which"
    " is neither read nor kept at norm 1; a sparsity_weight makes latents sparse",
    pl_callbacks.SpikeDetection: "Lightning cannot load its state, so no run could resume"
    " (Lightning-AI/pytorch-lightning #21752); use EarlyStopping with its divergence_threshold",
}


def ignore_warnings(tips: bool = False) -> None:
    """Ignore warnings of Lightning and torch that a user can do nothing about, and `tips`."""
    if tips:
        logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for pattern in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", pattern)


class FitLoop(_FitLoop):
    """Lightning's loop over epochs, resuming exactly at an epoch's end.

    With `max_steps`, Lightning (2.6) takes a checkpoint from the end of an epoch for one from its
    middle, and counts a step and an epoch too many.
    """

    def _iteration_based_training(self) -> bool:
        return False

    def on_run_start(self) -> None:
        """Log the steps of the run, and the one at which it resumes."""
        step, steps = self.trainer.global_step, self.trainer.estimated_stepping_batches
        parameters = sum(p.numel() for p in self.trainer.lightning_module.parameters())
        begins = f"training {parameters:,} parameters for {steps:,} steps"
        rank_zero_info(f"resuming at step {step:,} of {steps:,}" if step else begins)
        super().on_run_start()


class ProgressBar(pl_callbacks.TQDMProgressBar):
    """Lightning's bar, by the clock instead of by steps, with readable names."""

    def __init__(self) -> None:
        super().__init__()
        self._due: dict[Any, float] = {}  # by stage, as a validation is within an epoch

    def _should_update(self, current: int, total: int) -> bool:
        now, stage = time.monotonic(), self.trainer.state.stage
        if current != total and now < self._due.get(stage, 0.0):
            return False
        self._due[stage] = now + refresh_seconds(sys.stdout)
        return self.is_enabled

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Metrics by readable names."""
        return readable(trainer.progress_bar_metrics, trainer.callback_metrics.get(MEASURED_AT))

    def on_train_epoch_end(self, *args: Any) -> None:
        """Show the last step, also of an epoch that `max_steps` ends."""
        self.train_progress_bar.n = self.trainer.fit_loop.batch_idx + 1
        super().on_train_epoch_end(*args)


class ProgressLines(Callback):
    """Log a line of metrics now and then, at a step that logs them, for log files."""

    def on_train_start(self, *_: Any) -> None:
        """Start the clock."""
        self._due = time.monotonic() + refresh_seconds(sys.stdout)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Log the metrics where the line is due."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if time.monotonic() >= self._due and every and trainer.global_step % every == 0:
            self.on_train_start()
            measured_at = trainer.callback_metrics.get(MEASURED_AT)
            metrics = readable(trainer.progress_bar_metrics, measured_at).items()
            numbers = ", ".join(f"{name} {value}" for name, value in metrics)
            rank_zero_info(f"step {trainer.global_step:,}: {numbers}")


def readable(metrics: Mapping[str, float], measured_at: Any = None) -> dict[str, str]:
    """Metrics of a progress bar, named for people; a validation's with the step of it."""
    of_step = "" if measured_at is None else f" of step {int(measured_at):,}"
    return {
        SHORT.get(name, name) + of_step * name.startswith("val/"): (
            f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        )
        for name, value in metrics.items()
    }


class CheckMonitors(Callback):
    """Reject monitors of metrics that no validation logs, before training begins."""

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare monitored metrics with those that the validation has just logged."""
        known = trainer.callback_metrics.keys() | {"epoch", "step"}
        # LanguageModelMetrics logs after training.
        spliced = any(isinstance(c, LanguageModelMetrics) for c in trainer.callbacks)  # type: ignore[attr-defined]
        monitored = [
            (callback, callback.monitor)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping | ModelCheckpoint)
        ] + [(c.scheduler, c.monitor) for c in trainer.lr_scheduler_configs if c.reduce_on_plateau]
        for monitoring, metric in monitored:
            if metric is None or metric in known or metric.startswith("lr-"):
                continue
            # Metrics of training have a group, such as `loss/total`.
            if "/" not in metric or (metric.startswith("val/") and not spliced):
                name = type(monitoring).__name__
                problem = f"{name} monitors {metric}, which no validation gives"
                choices = ", ".join(sorted(known - {"epoch", "step"}))
                raise InputError(f"{problem}; choose from {choices}")


class Trainer(pl.Trainer):
    """Lightning's Trainer, with durable checkpoints, `harvest` and `verify`.

    Args:
        *args: As of Lightning's.
        max_epochs: Maximum number of epochs; default 1, or none with max_steps or max_time.
        **kwargs: As of Lightning's.
    """

    run_folder: Path | None = None  # on global rank 0; None where Lightning chooses

    def __init__(self, *args: Any, max_epochs: int | None = None, **kwargs: Any) -> None:
        limits = {"max_steps": -1, "max_time": None, **kwargs}
        if max_epochs is None and limits["max_steps"] == -1 and limits["max_time"] is None:
            max_epochs = 1
        precision = str(kwargs.get("precision"))
        if precision.startswith("transformer-engine"):
            problem = f"precision {precision} replaces layers that palinka computes by itself"
            raise InputError(f"{problem}: use bf16-mixed, bf16-true or 32-true")
        super().__init__(*args, max_epochs=max_epochs, **kwargs)
        self._reject_unsupported()
        half = torch.float16 if self.precision == "16-true" else torch.bfloat16
        on_cpu = isinstance(self.accelerator, CPUAccelerator) and "16" in str(self.precision)
        if on_cpu and (slow := slow_products(half)):
            rank_zero_warn(slow)
        fit_loop = FitLoop(self, self.fit_loop.min_epochs, self.fit_loop.max_epochs)
        fit_loop.epoch_loop = self.fit_loop.epoch_loop
        self.fit_loop = fit_loop
        # CheckpointIO plugins other than Lightning's default are the user's choice.
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:
            self.strategy.checkpoint_io = DurableCheckpointIO()
        elif isinstance(self.strategy.checkpoint_io, AsyncCheckpointIO):
            self.strategy.checkpoint_io.checkpoint_io = DurableCheckpointIO()
        self.callbacks: list[Callback]
        self.callbacks = sorted([FinalWeights(), *self.callbacks, CheckMonitors()], key=_rank)

    def _reject_unsupported(self) -> None:
        check_strategy(self.strategy, self.world_size)
        for callback in self.callbacks:
            for kind, reason in UNSUPPORTED.items():
                if isinstance(callback, kind):
                    raise InputError(f"{kind.__name__} cannot work here: {reason}")
        # Numbers of batches or epochs by which Lightning divides, and of batches to train on.
        dividing = ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval")
        for name in (*dividing, "limit_train_batches"):
            value = getattr(self, name, None)  # none where the interval is a time
            if value == 0 or (isinstance(value, int) and value < 1):
                raise InputError(f"trainer.{name} is {value:g}; expected at least 1")
        if self._model_registry:
            remedy = "no checkpoint is uploaded; write one for others with palinka export"
            raise InputError(f"trainer.model_registry is not supported: {remedy}")

    @property
    def log_dir(self) -> str | None:
        """Folder of the run, whatever the loggers; a collective call."""
        folder = self.strategy.broadcast(self.run_folder)
        return super().log_dir if folder is None else str(folder)

    def harvest(self, model: pl.LightningModule, datamodule: ActivationDataModule) -> None:
        """Fill the cache of activations; every device writes its own shards."""

        def work() -> None:
            self.strategy.connect(model)  # a strategy with a mesh hands it to the model
            self.strategy.setup_environment()
            rank = self.global_rank
            caches = datamodule.harvest(rank, self.world_size, self.strategy.barrier)
            for cache, seconds in caches.items() if rank == 0 else ():
                rate = f"{cache.rows / seconds:,.0f} tokens per second" if seconds else "existed"
                print(f"{cache}, {rate}, in   {cache.folder}")

        if launcher := self.strategy.launcher:
            launcher.launch(work, trainer=self)
        else:
            work()

    def verify(self, model: pl.LightningModule, datamodule: ActivationDataModule) -> None:
        """Compare the checksums of the caches of both splits."""
        for cache in datamodule.verify():
            print(f"{cache.folder}: {cache.rows:,} rows, {cache.bytes:,} bytes, all as written")


def _rank(callback: Callback) -> int:
    """Rank of callbacks: others, which may replace weights at the end, palinka's, checkpoints."""
    ours = type(callback).__module__.startswith("palinka.")
    return 2 if isinstance(callback, Checkpoint) else int(ours)
