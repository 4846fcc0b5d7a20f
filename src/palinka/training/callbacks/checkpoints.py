"""Checkpoints during a run, exact resume, and the weights that a run ends with."""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from palinka.autoencoders.base import positive_integer
from palinka.errors import InputError, expanded
from palinka.training.callbacks.base import has_stepped, log_folder
from palinka.training.checkpoint import read
from palinka.training.module import SparseAutoencoderModule
from palinka.training.sweep import SweepModule, of_variant


class StopSignals(_SignalConnector):
    """Graceful stop on SIGTERM, at the same step on all processes.

    Lightning runs a collective within the signal handler, at whatever step each process is, and
    each then stops by itself. Here the handler only sets a flag; `RunCheckpoints` reduces it over
    the processes at every step, saves, and stops all of them.
    """

    received = False

    def _sigterm_notifier_fn(self, signum: int, _: FrameType | None) -> None:
        launcher = self.trainer.strategy.launcher
        if launcher is not None and not self.received:
            launcher.kill(signum)
        self.received = True


EVENT_FILES = "events.out.tfevents.*"


def metrics_file(logger: CSVLogger) -> Path:
    """Output file of a CSV logger."""
    return expanded(logger.log_dir) / ExperimentWriter.NAME_METRICS_FILE


def log_positions(trainer: Trainer) -> dict[str, int]:
    """Flush the loggers' files and measure them, on the process that logs.

    Bytes of each TensorBoard file and rows of each CSV file, by path relative to the log folder.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger | CSVLogger):
            logger.save()
    return {
        name: len(_rows(path)) if isinstance(logger, CSVLogger) else path.stat().st_size
        for logger, path, name in _log_files(trainer)
    }


def rewind_logs(trainer: Trainer, positions: Mapping[str, int]) -> None:
    """Remove what a run logged after its `log_positions` were taken, and will log again."""
    for logger, path, name in _log_files(trainer):
        kept = positions.get(name, 0)
        if isinstance(logger, CSVLogger):
            logger.experiment.metrics = _rows(path)[:kept]  # before its constructor deletes them
            logger.save()
        elif path.is_relative_to(log_folder(trainer)):
            if kept == 0:
                path.unlink()
            elif path.stat().st_size > kept:
                os.truncate(path, kept)


def _log_files(trainer: Trainer) -> Iterator[tuple[Logger, Path, str]]:
    """Files of loggers, with their paths relative to the log folder; outside it their names."""
    folder = log_folder(trainer)
    for logger in trainer.loggers:
        paths: Iterable[Path] = ()
        if isinstance(logger, CSVLogger):
            paths = [metrics_file(logger)]
        elif isinstance(logger, TensorBoardLogger):
            paths = sorted(Path(logger.log_dir).glob(EVENT_FILES))
        for path in paths:
            inside = path.is_relative_to(folder)
            yield logger, path, path.relative_to(folder).as_posix() if inside else path.name


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


FOLDER = "checkpoints"
NEWEST, OLDER = "last.ckpt", "previous.ckpt"


class RunCheckpoints(Checkpoint):
    """Save `checkpoints/last.ckpt` for exact resume, and keep `previous.ckpt`.

    Both are in the log folder. They are written every `every_n_steps` optimizer steps, at the end
    of each epoch and of the fit, and on SIGTERM, which then ends the run; always when no gradient
    is partly accumulated and no validation is due. Besides Lightning's state they hold the last
    metrics and the lengths of the log files. At the end of a sweep each variant gets its own,
    `VARIANT/checkpoints/last.ckpt`.

    Args:
        every_n_steps: Optimizer steps between checkpoints within an epoch.
    """

    def __init__(self, every_n_steps: int = 1000) -> None:
        self.every_n_steps = positive_integer("every_n_steps", every_n_steps)
        self._saved = -1
        self._kept: tuple[int, ...] = ()
        self._due = self._stopping = False
        self._restored: dict[str, Any] = {}

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Make the folder and install the signal handler."""
        if stage != "fit":
            return
        self._signals = trainer._signal_connector = StopSignals(trainer)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / FOLDER
        for other in trainer.checkpoint_callbacks:
            if not isinstance(other, ModelCheckpoint) or not other.save_last:
                continue
            if Path(other.dirpath or self._folder).resolve() == self._folder.resolve():
                problem = "ModelCheckpoint's save_last would overwrite the last.ckpt of the run"
                raise InputError(f"{problem}: leave it out, or give it a dirpath of its own")
        if trainer.is_global_zero:
            self._folder.mkdir(parents=True, exist_ok=True)

    def on_fit_start(self, trainer: Trainer, *_: Any) -> None:
        """Restore the metrics of a checkpoint."""
        if not trainer.strategy.restore_checkpoint_after_setup:
            self._restore(trainer)

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Load the state of `on_save_checkpoint`."""
        self._restored = checkpoint.get("run", {})
        self._kept = fingerprint(module, checkpoint.get("state_dict", {}))
        # A sanity check would discard the metrics, which a run at its end does not measure again.
        trainer.num_sanity_val_steps = 0
        if trainer.strategy.restore_checkpoint_after_setup:
            self._restore(trainer)

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Record the step of the checkpoint that the run resumes from."""
        self._saved = trainer.global_step if self._restored else -1

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save every n steps, unless a validation or the end of the epoch comes first."""
        received = self._signals.received
        self._stopping |= trainer.strategy.reduce_boolean_decision(received, all=False)
        if has_stepped(trainer):
            step, n = trainer.global_step, self.every_n_steps
            self._due |= self._stopping or step == trainer.max_steps or step % n == 0
            if self._due and not trainer.is_last_batch and not _validation_follows(trainer):
                self._save(trainer)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Save after a validation in the middle of an epoch, if due."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and self._due and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save at the end of a whole epoch."""
        if trainer.is_last_batch:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save after early stopping, or where a callback has replaced the weights."""
        replaced = trainer.strategy.broadcast(fingerprint(module) != self._kept)
        if trainer.global_step > self._saved or replaced:
            self._save(trainer)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the checkpoint of every variant of a sweep."""
        if isinstance(module, SweepModule) and trainer.is_global_zero and self._saved >= 0:
            checkpoint = read(self._folder / NEWEST, allow_sweep=True)
            for name in module.names:
                path = self._folder.parent / name / FOLDER / NEWEST
                trainer.strategy.checkpoint_io.save_checkpoint(of_variant(checkpoint, name), path)

    def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
        """Log how to resume, or that nothing is saved yet."""
        if not isinstance(error, (SIGTERMException, KeyboardInterrupt)) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        stopped = f"stopped after step {trainer.global_step}"
        if self._saved >= 0 or (log_folder(trainer) / FOLDER / NEWEST).exists():
            saved = f", saved at step {self._saved}" if self._saved >= 0 else ""
            remedy = "the same command with --ckpt_path last resumes there"
        else:
            saved = ", before the first checkpoint: nothing is saved of the training"
            remedy = f"checkpoints come every {self.every_n_steps:,} steps and after each epoch"
        rank_zero_info(f"{stopped}{saved}; {remedy}")

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the last metrics, the lengths of the logs, and metrics not yet logged."""
        if trainer.is_global_zero:
            metrics = trainer.callback_metrics.items()
            checkpoint["run"] = {
                "metrics": {name: value.detach().cpu().clone() for name, value in metrics},
                "events": log_positions(trainer),
                "step": trainer.fit_loop.epoch_loop._batches_that_stepped,
                "unlogged": _measured_but_not_logged(trainer),
            }

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._signals.received_sigterm = self._stopping
            return
        self._due, self._saved = False, trainer.global_step
        newest = self._folder / NEWEST
        if trainer.is_global_zero and newest.exists():
            link = self._folder / f"{OLDER}.tmp"
            link.unlink(missing_ok=True)
            os.link(newest, link)  # so that the newest is never missing
            link.replace(self._folder / OLDER)
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        self._kept = fingerprint(trainer.lightning_module, checkpoint["state_dict"])
        trainer.strategy.save_checkpoint(checkpoint, newest)
        trainer.strategy.barrier("RunCheckpoints")
        if self._stopping:
            self._signals.received_sigterm = True  # ends the run before the next step

    def _restore(self, trainer: Trainer) -> None:
        trainer.callback_metrics.update(self._restored.get("metrics", {}))
        if unlogged := self._restored.get("unlogged"):
            for logger in trainer.loggers:
                logger.log_metrics(unlogged, step=self._restored["step"])


def _validation_follows(trainer: Trainer) -> bool:
    """True if Lightning validates before the next batch; resumed there, it would not."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def _measured_but_not_logged(trainer: Trainer) -> dict[str, float]:
    """Metrics of the current step, which Lightning logs only after `on_train_batch_end`."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    connector = trainer._logger_connector
    # `ready` counts a batch when it arrives, `completed` after that hook.
    in_batch = progress.current.ready > progress.current.completed
    if not in_batch or not has_stepped(trainer) or not connector.should_update_logs:
        return {}
    values = {name: float(value) for name, value in connector.metrics["log"].items()}
    return values and {**values, "epoch": trainer.current_epoch}


MEASURED_AT = "measured_at_step"  # among the metrics: the step of the last validation


class FinalWeights(Callback):
    """Constrain and validate the final weights, which callbacks may have replaced.

    Weight averaging replaces weights at the end of training. Directions are normalized again, and
    weights that differ from the last validation's are validated, so that metrics, `last.ckpt` and
    module agree. The Trainer puts it after the user's callbacks and before palinka's.
    """

    _measured: tuple[int, ...] = ()
    _measured_at = -1
    _trained: tuple[int, ...] = ()

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Record the measured weights, and the step among the metrics, which are resumed."""
        self._measured, self._measured_at = fingerprint(module), trainer.global_step
        if not trainer.sanity_checking:
            trainer.callback_metrics[MEASURED_AT] = torch.tensor(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Record the trained weights, where this may be the last step."""
        if trainer.is_last_batch or trainer.should_stop or trainer.global_step == trainer.max_steps:
            self._trained = fingerprint(module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Constrain the weights, and validate those that have not been."""
        sharded = module.device_mesh is not None
        if sharded or not isinstance(module, SparseAutoencoderModule | SweepModule):
            return
        final = fingerprint(module)
        module.constrain()
        # A run may end between two validations, but not with weights that no step made.
        replaced = final != self._trained or trainer.global_step == self._measured_at
        stale = final != self._measured
        if trainer.enable_validation and trainer.strategy.broadcast(replaced and stale):
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True


def fingerprint(
    module: LightningModule, state: Mapping[str, Tensor] | None = None
) -> tuple[int, ...]:
    """Checksum of each weight of a module or of its `state`; empty if the module is sharded."""
    if module.device_mesh is not None:
        return ()
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    own = dict(module.named_parameters())
    weights = [(own if state is None else state)[name].detach() for name in own]
    return tuple(int(w.view(integers[w.itemsize]).sum(dtype=torch.int64)) for w in weights)
