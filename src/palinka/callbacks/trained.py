"""The autoencoders that a run trains: one, or the variants of a sweep."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from palinka.callbacks.report import log_folder
from palinka.callbacks.variant_logger import VariantLogger
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule, SweepModule
from palinka.training.sweep_checkpoint import below


@dataclass(frozen=True)
class Trained:
    """One of the autoencoders that a run trains, as if the run were its own.

    Attributes:
        name: The variant's; empty in a run that trains a single autoencoder.
        module: What is trained.
        overrides: What the variant has different.
        metrics: The last values under their plain names, such as `val/fvu`.
        loggers: The loggers that take plain names.
        folder: Where its results are kept.
    """

    name: str
    module: SparseAutoencoderModule
    overrides: Mapping[str, Any]
    metrics: Mapping[str, Tensor]
    loggers: tuple[Logger, ...]
    folder: Path

    @property
    def seed(self) -> dict[str, Any]:
        """The seed, where the variant has one of its own."""
        return {name: self.overrides[name] for name in ("seed",) if name in self.overrides}

    @property
    def writers(self) -> Iterator[SummaryWriter]:
        """The event writers of its TensorBoard loggers; only for the process that logs."""
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                yield logger.experiment


def trained(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[Trained]:
    """The autoencoders that a run trains; none where it trains something else."""
    folder, metrics = log_folder(trainer), trainer.callback_metrics
    if isinstance(pl_module, SparseAutoencoderModule):
        yield Trained("", pl_module, {}, metrics, tuple(trainer.loggers), folder)
    if isinstance(pl_module, SweepModule):
        for name, module in pl_module.variants.items():
            loggers = tuple(
                logger
                for logger in trainer.loggers
                if isinstance(logger, VariantLogger) and logger.variant == name
            )
            overrides = pl_module.overrides.get(name, {})
            yield Trained(
                name, module, overrides, below(metrics, f"{name}/"), loggers, folder / name
            )


def refuse_sweep(callback: pl.Callback, pl_module: pl.LightningModule) -> None:
    """Refuse, before anything is trained, to look at several autoencoders as if they were one.

    Raises:
        InputError: If the module is a sweep.
    """
    if isinstance(pl_module, SweepModule):
        raise InputError(
            f"{type(callback).__name__} looks at a single autoencoder: leave it out of a sweep, and"
            " give palinka validate or analyze the checkpoints of the variants"
        )
