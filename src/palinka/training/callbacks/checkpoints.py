"""Checkpoints during a run, exact resume, and the weights that a run ends with."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from palinka.autoencoders.base import positive_integer
from palinka.errors import InputError
from palinka.training.callbacks.summary import log_folder, metrics_file
from palinka.training.callbacks.tensorboard import all_writers
from palinka.training.checkpoint import read_any
from palinka.training.module import SparseAutoencoderModule
from palinka.training.sweep import SweepModule, of_variant


class StopSignals(_SignalConnector):
    """Lightning's signal handling, put off to a moment when all processes are at the same place.

    Lightning talks to the other processes from within the handler, wherever each of them happens
    to be, and then lets each stop by itself. Here the handler only takes note; `RunCheckpoints`
    asks at every step whether anybody was told to stop, saves, and lets all of them stop at once.
    """

    def __init__(self, trainer: "pl.Trainer") -> None:
        super().__init__(trainer)
        self._told = False

    def told_to_stop(self) -> bool:
        """Whether any process has had SIGTERM; all of them must ask at the same step."""
        return bool(self.trainer.strategy.reduce_boolean_decision(self._told, all=False))

    def stop(self) -> None:
        """Let Lightning end the run before the next step, on this process."""
        self.received_sigterm = True

    def _sigterm_notifier_fn(self, signum: int, _: FrameType | None) -> None:
        launcher = self.trainer.strategy.launcher
        if launcher is not None and not self._told:
            launcher.kill(signum)
        self._told = True


EVENT_FILES = "events.out.tfevents.*"


def log_positions(trainer: pl.Trainer) -> dict[str, int]:
    """Write all that was logged, and return how much that is.

    Returns:
        The bytes of each TensorBoard file and the rows of each CSV file, by their paths relative
        to the log folder; empty on processes that do not log.
    """
    positions = {}
    for writer in all_writers(trainer):
        writer.flush()
        for path in Path(writer.log_dir).glob(EVENT_FILES):
            positions[_relative(path, log_folder(trainer))] = path.stat().st_size
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, CSVLogger):
            logger.save()
            path = metrics_file(logger)
            positions[_relative(path, log_folder(trainer))] = len(_rows(path))
    return positions


def rewind_logs(trainer: pl.Trainer, positions: Mapping[str, int]) -> None:
    """Remove what a run logged after a checkpoint, which it will log again.

    Args:
        trainer: Its loggers have not logged yet.
        positions: What `log_positions` returned for the checkpoint.
    """
    folder = log_folder(trainer)
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            path = metrics_file(logger)
            rows = _rows(path)[: positions.get(_relative(path, folder), 0)]
            logger.experiment.metrics = rows  # its constructor has deleted the file
            logger.save()
        elif isinstance(logger, TensorBoardLogger) and Path(logger.log_dir).is_relative_to(folder):
            for path in Path(logger.log_dir).glob(EVENT_FILES):
                size = positions.get(_relative(path, folder), 0)
                if size == 0:
                    path.unlink()
                elif path.stat().st_size > size:
                    os.truncate(path, size)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _relative(path: Path, folder: Path) -> str:
    """A file of another folder keeps its plain name."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


FOLDER = "checkpoints"
NEWEST, OLDER = "last.ckpt", "previous.ckpt"


class RunCheckpoints(Checkpoint):
    """Keeps `checkpoints/last.ckpt` in the log folder, and `previous.ckpt` in case it is damaged.

    They are written every `every_n_steps` optimizer steps, at the end of each epoch and of the
    fit, and when the run gets SIGTERM, which then ends it; always where no gradient is half
    accumulated and no validation is due. Beside Lightning's state they hold the last
    metrics, and how far the log files had come. From the last one of a sweep come those of
    its variants, `VARIANT/checkpoints/last.ckpt`, once it has ended.

    Args:
        every_n_steps: Optimizer steps between checkpoints within an epoch.

    Raises:
        InputError: If `every_n_steps` is not positive.
    """

    def __init__(self, every_n_steps: int = 1000) -> None:
        self.every_n_steps = positive_integer("every_n_steps", every_n_steps)
        self._folder = Path(FOLDER)
        self._step = 0
        self._saved = -1
        self._kept: tuple[int, ...] = ()
        self._due = False
        self._told = False
        self._signals: StopSignals | None = None
        self._restored: dict[str, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the folder, which tells a run that was fitted from others, and listen to signals."""
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / FOLDER
        for other in trainer.checkpoint_callbacks:
            if not isinstance(other, ModelCheckpoint) or not other.save_last:
                continue
            if Path(other.dirpath or self._folder).resolve() == self._folder.resolve():
                raise InputError(
                    "ModelCheckpoint's save_last would write over the last.ckpt from which every"
                    " run resumes: leave it out, or give it a dirpath of its own"
                )
        if trainer.is_global_zero:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._signals = StopSignals(trainer)
        trainer._signal_connector = self._signals

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring back the metrics of a checkpoint, and log what had been measured but not logged."""
        if not trainer.strategy.restore_checkpoint_after_setup:
            self._restore(trainer)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take what `on_save_checkpoint` has left."""
        self._restored = checkpoint.get("run", {})
        self._kept = fingerprint(pl_module, checkpoint.get("state_dict", {}))
        # A run that goes on was checked when it began. The check would forget its metrics, which a
        # run that only lacks its end does not measure again.
        trainer.num_sanity_val_steps = 0
        if trainer.strategy.restore_checkpoint_after_setup:
            self._restore(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count optimizer steps from here."""
        self._step = trainer.global_step
        self._saved = trainer.global_step if self._restored else -1

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: torch.Tensor,
        batch_idx: int,
    ) -> None:
        """Save if it is time, unless a validation or the end of the epoch comes first."""
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if self._signals is not None:
            self._told |= self._signals.told_to_stop()
        if not stepped:
            return
        last = self._step == trainer.max_steps
        self._due |= self._told or last or self._step % self.every_n_steps == 0
        if self._due and not trainer.is_last_batch and not _validation_follows(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what was due before a validation in the middle of an epoch."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and self._due and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of a whole epoch."""
        if trainer.is_last_batch:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save where the run was ended otherwise, as by early stopping, or has other weights."""
        replaced = trainer.strategy.broadcast(fingerprint(pl_module) != self._kept)
        if trainer.global_step > self._saved or replaced:
            self._save(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give every variant of a sweep the checkpoint that a run of its own would have left."""
        if isinstance(pl_module, SweepModule) and trainer.is_global_zero and self._saved >= 0:
            checkpoint = read_any(self._folder / NEWEST)
            for name in pl_module.names:
                path = self._folder.parent / name / FOLDER / NEWEST
                own = of_variant(checkpoint, name)
                trainer.strategy.checkpoint_io.save_checkpoint(own, path)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Say how to go on."""
        if isinstance(exception, (SIGTERMException, KeyboardInterrupt)) and self._saved >= 0:
            rank_zero_info(
                f"stopped after step {trainer.global_step}, saved at step {self._saved}:"
                " the same command with --ckpt_path last goes on there"
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the last metrics, how long the logs are, and what they still lack."""
        if not trainer.is_global_zero:
            return
        metrics = {n: v.detach().cpu().clone() for n, v in trainer.callback_metrics.items()}
        checkpoint["run"] = {
            "metrics": metrics,
            "events": log_positions(trainer),
            "step": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "unlogged": _measured_but_not_logged(trainer),
        }

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._due = False
        self._saved = trainer.global_step
        newest = self._folder / NEWEST
        if trainer.is_global_zero and newest.exists():
            # Two names for one file: then the newest is never missing, not for a moment.
            link = self._folder / f"{OLDER}.tmp"
            link.unlink(missing_ok=True)
            os.link(newest, link)
            link.replace(self._folder / OLDER)
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        self._kept = fingerprint(trainer.lightning_module, checkpoint["state_dict"])
        trainer.strategy.save_checkpoint(checkpoint, newest)
        trainer.strategy.barrier("RunCheckpoints")
        if self._told and self._signals is not None:
            self._signals.stop()

    def _restore(self, trainer: pl.Trainer) -> None:
        trainer.callback_metrics.update(self._restored.get("metrics", {}))
        unlogged = self._restored.get("unlogged", {})
        if unlogged:
            for logger in trainer.loggers:
                logger.log_metrics(unlogged, step=self._restored["step"])


def _validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates before the next batch: resumed there, it would not."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(
        loop._data_fetcher
    )


def _measured_but_not_logged(trainer: pl.Trainer) -> dict[str, float]:
    """A step's metrics, which Lightning logs only after the hooks at the end of its batch."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    connector = trainer._logger_connector
    # Counted as begun when the batch arrived, and as completed after those hooks.
    in_batch = progress.current.ready > progress.current.completed
    if not in_batch or trainer.fit_loop._should_accumulate() or not connector.should_update_logs:
        return {}
    values = {name: float(value) for name, value in connector.metrics["log"].items()}
    return {**values, "epoch": trainer.current_epoch} if values else {}


class FinalWeights(Callback):
    """Constrains and validates what callbacks before it made of the weights when training ended.

    Averaging callbacks put their averages in place of the weights then. Directions of norm 1
    become so again, and where the last validation was one of other weights, there is another, so
    that the metrics, `last.ckpt` and the module are of the same autoencoder. The Trainer puts it
    behind the callbacks of others and before those of palinka.
    """

    def __init__(self) -> None:
        self._measured: tuple[int, ...] = ()
        self._measured_at = -1
        self._trained: tuple[int, ...] = ()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note which weights are measured."""
        self._measured_at = trainer.global_step
        self._measured = fingerprint(pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note which weights training leaves, where this may be its last step."""
        last = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        if last or trainer.should_stop:
            self._trained = fingerprint(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Constrain the weights, and measure them where they have not been."""
        if not isinstance(pl_module, SparseAutoencoderModule | SweepModule):
            return
        if pl_module.device_mesh is not None:
            return
        final = fingerprint(pl_module)
        pl_module.constrain()
        # A run may end between two validations, but not with weights that no step made.
        replaced = final != self._trained or trainer.global_step == self._measured_at
        stale = final != self._measured
        if trainer.enable_validation and trainer.strategy.broadcast(replaced and stale):
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True


def fingerprint(
    module: pl.LightningModule, state: Mapping[str, Tensor] | None = None
) -> tuple[int, ...]:
    """Sums of the bits of a module's weights, by which these are told apart on any device.

    Args:
        module: One whose latents are divided over devices has none.
        state: A checkpoint's weights, to be taken in place of the module's.
    """
    if module.device_mesh is not None:
        return ()
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    named = dict(module.named_parameters())
    weights = [named[name] if state is None else state[name] for name in named]
    return tuple(
        int(tensor.detach().view(integers[tensor.itemsize]).sum(dtype=torch.int64))
        for tensor in weights
    )
