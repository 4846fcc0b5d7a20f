"""The autoencoders of a run, alone or in a sweep, and bases of callbacks."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from palinka.data import ActivationDataModule
from palinka.errors import InputError
from palinka.training.checkpoint import VARIANTS
from palinka.training.module import SparseAutoencoderModule
from palinka.training.sweep import SweepModule, strip_prefix


def log_folder(trainer: Trainer) -> Path:
    """`trainer.log_dir` without its broadcast, a collective."""
    if run_folder := getattr(trainer, "run_folder", None):
        return Path(run_folder)
    folders = (getattr(logger, "log_dir", None) or logger.save_dir for logger in trainer.loggers)
    return Path(next(filter(None, folders), None) or trainer.default_root_dir)


class VariantLogger(TensorBoardLogger):
    """TensorBoard logger of one variant, in a folder of its own name within the sweep's."""

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
        if own := strip_prefix(metrics, f"{self.variant}/"):
            epoch = {name: metrics[name] for name in ("epoch",) if name in metrics}
            super().log_metrics({**own, **epoch}, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Log the variant's own among the sweep's, which Lightning hands to every logger."""
        own = params.get(VARIANTS, {}).get(self.variant, params)
        super().log_hyperparams(own, metrics, step)


def with_variants(loggers: Any, variants: Iterable[str]) -> Iterator[Logger]:
    """Loggers of a sweep: the trainer's (or a boolean), and for TensorBoard one per variant."""
    given = loggers if isinstance(loggers, list) else [loggers]
    for logger in (one for one in given if isinstance(one, Logger)):
        yield logger
        if isinstance(logger, TensorBoardLogger):
            yield from (VariantLogger(logger, variant) for variant in variants)


@dataclass(frozen=True)
class TrainedModel:
    """One of the autoencoders of a run, with the metrics and loggers of a single run."""

    name: str  # empty in a run with a single autoencoder
    module: SparseAutoencoderModule
    overrides: Mapping[str, Any]
    metrics: Mapping[str, Tensor]  # by name without prefix, such as `val/fvu`
    loggers: Sequence[TensorBoardLogger]


def iter_models(trainer: Trainer, module: LightningModule) -> Iterator[TrainedModel]:
    """Iterate over the autoencoders of a run; none if it trains something else."""
    metrics = trainer.callback_metrics
    boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    if isinstance(module, SparseAutoencoderModule):
        yield TrainedModel("", module, {}, metrics, boards)
    if isinstance(module, SweepModule):
        for name, variant in module.variants.items():
            loggers = [x for x in boards if isinstance(x, VariantLogger) and x.variant == name]
            overrides, own = module.overrides.get(name, {}), strip_prefix(metrics, f"{name}/")
            yield TrainedModel(name, variant, overrides, own, loggers)


def single_model(
    callback: Callback, trainer: Trainer, module: LightningModule
) -> tuple[SparseAutoencoderModule, ActivationDataModule] | None:
    """Autoencoder and data of a callback that reads the language model; warn if it cannot."""
    data = getattr(trainer, "datamodule", None) if module.device_mesh is None else None
    if isinstance(module, SparseAutoencoderModule) and isinstance(data, ActivationDataModule):
        return module, data
    rank_zero_warn(
        f"{type(callback).__name__} skipped: it takes an ActivationDataModule, and an autoencoder"
        " whose latents are on one device; run palinka validate with the checkpoint there"
    )
    return None


@contextmanager
def evaluating(module: LightningModule) -> Iterator[None]:
    """Put a module into evaluation mode within the `with`."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


class SingleModelCallback(Callback):
    """A callback of a single autoencoder."""

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Reject a sweep before it is trained."""
        if isinstance(module, SweepModule):
            remedy = "leave it out of a sweep, and validate or analyze each variant's checkpoint"
            raise InputError(f"{type(self).__name__} takes a single autoencoder: {remedy}")


def has_stepped(trainer: Trainer) -> bool:
    """True after a training batch that ended with an optimizer step."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


class EveryNSteps(Callback, ABC):
    """Call `at_step` every `every_n_steps` optimizer steps of a fit, if that is not None."""

    every_n_steps: int | None

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Call `at_step` after the n-th step."""
        n = self.every_n_steps
        if n is not None and has_stepped(trainer) and trainer.global_step % n == 0:
            self.at_step(trainer, module)

    @abstractmethod
    def at_step(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure, draw or analyze the weights of this step."""


class EndOfRunCallback(SingleModelCallback, ABC):
    """Write results at the end of `validate` and of `fit`, on the process that logs."""

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write results of a checkpoint."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_fit_end(trainer, module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write results, or warn without an unsharded autoencoder and its data module."""
        writes = trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if writes and (found := single_model(self, trainer, pl_module)):
            self.write(trainer, *found)

    @abstractmethod
    def write(
        self, trainer: Trainer, module: SparseAutoencoderModule, data: ActivationDataModule
    ) -> None:
        """Write results."""
