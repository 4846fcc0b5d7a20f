"""Callbacks and logging for sweeps."""

from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from palinka.data import ActivationDataModule
from palinka.errors import InputError
from palinka.training.callbacks.summary import log_folder
from palinka.training.checkpoint import VARIANTS
from palinka.training.module import SparseAutoencoderModule
from palinka.training.sweep import SweepModule, strip_prefix


class VariantLogger(TensorBoardLogger):
    """TensorBoard logger of one variant, with the names of a single run.

    Args:
        run: The logger of the sweep.
        variant: The variant's name, which is also that of its folder.
    """

    def __init__(self, run: TensorBoardLogger, variant: str) -> None:
        super().__init__(run.save_dir, run.name, default_hp_metric=False)
        self._run = run
        self.variant = variant

    @property
    def log_dir(self) -> str:
        """Folder within the sweep's, whose version may not have been chosen yet."""
        return str(Path(self._run.log_dir) / self.variant)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the variant's metrics."""
        own = strip_prefix(metrics, f"{self.variant}/")
        if own:
            epoch = {name: metrics[name] for name in ("epoch",) if name in metrics}
            super().log_metrics({**own, **epoch}, step)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Log the variant's own among the sweep's, which Lightning hands to every logger."""
        named = vars(params) if isinstance(params, Namespace) else params
        super().log_hyperparams(named.get(VARIANTS, {}).get(self.variant, named), metrics, step)
        if metrics:  # without prefix, which `log_metrics` ignores
            super().log_metrics(metrics, step)


def with_variants(loggers: Any, variants: Iterable[str]) -> Iterator[Logger]:
    """Loggers of a sweep: the trainer's (or a boolean), and for TensorBoard one per variant."""
    given = loggers if isinstance(loggers, list) else [loggers]
    for logger in (one for one in given if isinstance(one, Logger)):
        yield logger
        if isinstance(logger, TensorBoardLogger):
            yield from (VariantLogger(logger, variant) for variant in variants)


@dataclass(frozen=True)
class TrainedModel:
    """One of the autoencoders of a run, with the metrics and loggers of a single run.

    Attributes:
        name: The variant's; empty in a run with a single autoencoder.
        module: Its module.
        overrides: Settings by which the variant differs.
        metrics: Last values by name without prefix, such as `val/fvu`.
        loggers: Loggers that take such names.
        folder: Log folder.
    """

    name: str
    module: SparseAutoencoderModule
    overrides: Mapping[str, Any]
    metrics: Mapping[str, Tensor]
    loggers: tuple[Logger, ...]
    folder: Path

    @property
    def seed(self) -> dict[str, Any]:
        """The variant's own seed, if any."""
        return {name: self.overrides[name] for name in ("seed",) if name in self.overrides}

    @property
    def writers(self) -> Iterator[SummaryWriter]:
        """Event writers of its TensorBoard loggers; only for the process that logs."""
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                yield logger.experiment


def iter_models(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[TrainedModel]:
    """Iterate over the autoencoders of a run; none if it trains something else."""
    folder, metrics = log_folder(trainer), trainer.callback_metrics
    if isinstance(pl_module, SparseAutoencoderModule):
        yield TrainedModel("", pl_module, {}, metrics, tuple(trainer.loggers), folder)
    if isinstance(pl_module, SweepModule):
        for name, module in pl_module.variants.items():
            loggers = tuple(
                logger
                for logger in trainer.loggers
                if isinstance(logger, VariantLogger) and logger.variant == name
            )
            overrides = pl_module.overrides.get(name, {})
            yield TrainedModel(
                name, module, overrides, strip_prefix(metrics, f"{name}/"), loggers, folder / name
            )


def reject_sweep(callback: pl.Callback, pl_module: pl.LightningModule) -> None:
    """Raise if the module is a sweep, for a callback of a single autoencoder."""
    if isinstance(pl_module, SweepModule):
        raise InputError(
            f"{type(callback).__name__} takes a single autoencoder: leave it out of a sweep, and"
            " give palinka validate or analyze the checkpoints of the variants"
        )


class EndOfRunCallback(Callback, ABC):
    """Write results at the end of `validate` and of `fit`, on the process that logs.

    Attributes:
        what: Name of the results, for the warning where they cannot be written.
    """

    what: str

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Reject a sweep before it is trained."""
        reject_sweep(self, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write results of a checkpoint."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.write_where_possible(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write results of a fit."""
        self.write_where_possible(trainer, pl_module)

    def write_where_possible(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write, or warn where latents are sharded or the data module is another."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data = getattr(trainer, "datamodule", None)
        if (
            not isinstance(module, SparseAutoencoderModule)
            or module.device_mesh is not None
            or not isinstance(data, ActivationDataModule)
        ):
            rank_zero_warn(
                f"no {self.what}: it takes an autoencoder on one device, and the rows of an"
                " ActivationDataModule"
            )
            return
        self.write(trainer, module, data)

    @abstractmethod
    def write(
        self, trainer: pl.Trainer, module: SparseAutoencoderModule, data: ActivationDataModule
    ) -> None:
        """Write results."""
