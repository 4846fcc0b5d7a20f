"""How fast a fit goes, and whether it waits for its data."""

import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback


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
