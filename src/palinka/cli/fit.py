"""The Lightning CLI: `fit`, `validate`, `test`, `predict`, `harvest` and `verify`."""

import errno
import logging
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.seed import seed_everything
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    Checkpoint,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    ProgressBar,
    SpikeDetection,
    TQDMProgressBar,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

import palinka.atlas
import palinka.autoencoders
import palinka.data  # noqa: F401
from palinka.cli import resume as runs
from palinka.cli.parser import ConfigArgumentParser, move_configs_first, with_overrides
from palinka.cli.resume import LOG_FOLDER, check_optimizer, ignored_settings, recorded_optimizer
from palinka.cli.sweep import Variants, expand, options
from palinka.data import ActivationDataModule
from palinka.errors import InputError, is_quiet
from palinka.language_models.cpu import slow_products
from palinka.training import SparseAutoencoderModule, SweepModule, callbacks
from palinka.training.callbacks import LanguageModelMetrics
from palinka.training.callbacks.checkpoints import FinalWeights
from palinka.training.checkpoint import (
    VARIANTS,
    DurableCheckpointIO,
    check_strategy,
    read_any,
    settings_of,
)

# Lightning's callbacks that cannot do here what its documentation says, and why.
REFUSED: dict[type[Callback], str] = {
    BackboneFinetuning: "an autoencoder has no backbone; freeze parts of it with a BaseFinetuning",
    BatchSizeFinder: (
        "another batch size is another run, and it tries sizes beyond the training rows; try some"
        " with --data.batch_size and --trainer.max_steps 3"
    ),
    LearningRateFinder: (
        "the optimizer has its own learning rate, which it cannot set; try some with"
        " --model.optimizer.lr and --trainer.max_steps 100"
    ),
    ModelPruning: (
        "it puts a product of weight and mask in place of a parameter, which is neither read nor"
        " kept at norm 1; a sparsity_weight makes latents sparse"
    ),
    SpikeDetection: (
        "Lightning cannot load its state, so no run could resume (Lightning-AI/pytorch-lightning"
        " #21752); use EarlyStopping with its divergence_threshold"
    ),
}
# Numbers of batches or epochs by which Lightning divides.
_AT_LEAST_1 = ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval")


class FitLoop(_FitLoop):
    """Lightning's loop over epochs, which goes on at an epoch's end exactly, whatever ends it.

    With `max_steps`, Lightning (2.6) takes a checkpoint from the end of an epoch for one from its
    middle, and counts a step and an epoch too many.
    """

    def _iteration_based_training(self) -> bool:
        return False


class CheckMonitors(Callback):
    """Refuses, before anything is trained, to wait for a metric that no validation gives."""

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare what is monitored with what a validation has just logged."""
        known = trainer.callback_metrics.keys() | {"epoch", "step"}
        # It logs after the training.
        spliced = any(isinstance(c, LanguageModelMetrics) for c in trainer.callbacks)  # type: ignore[attr-defined]
        monitored = [
            (type(callback).__name__, callback.monitor)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping | ModelCheckpoint)
        ] + [
            (type(config.scheduler).__name__, config.monitor)
            for config in trainer.lr_scheduler_configs
            if config.reduce_on_plateau
        ]
        for name, metric in monitored:
            if metric is None or metric in known or metric.startswith("lr-"):
                continue
            # All that training logs has a group, such as `loss/total`.
            if "/" not in metric or (metric.startswith("val/") and not spliced):
                there = ", ".join(sorted(known - {"epoch", "step"}))
                raise InputError(
                    f"{name} monitors {metric}, which no validation gives; choose from {there}"
                )


class Trainer(pl.Trainer):
    """Lightning's Trainer, which writes checkpoints durably and can fill a cache on all devices.

    Attributes:
        run_folder: The run's folder, on the process with global rank 0; None where Lightning
            chooses.
    """

    run_folder: Path | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        precision = str(kwargs.get("precision"))
        if precision.startswith("transformer-engine"):
            raise InputError(
                f"precision {precision} replaces layers that palinka computes by itself: use"
                " bf16-mixed, bf16-true or 32-true"
            )
        super().__init__(*args, **kwargs)
        self._refuse_what_cannot_work()
        half = torch.float16 if self.precision == "16-true" else torch.bfloat16
        if isinstance(self.accelerator, CPUAccelerator) and "16" in str(self.precision):
            slow = slow_products(half)
            if slow is not None:
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
        self.callbacks = _in_order([*self.callbacks, CheckMonitors()])

    def _refuse_what_cannot_work(self) -> None:
        check_strategy(self.strategy, self.world_size)
        for callback in self.callbacks:
            for kind, reason in REFUSED.items():
                if isinstance(callback, kind):
                    raise InputError(f"{kind.__name__} cannot work here: {reason}")
        for name in _AT_LEAST_1:
            value = getattr(self, name, None)  # none where the interval is a time
            if isinstance(value, int) and value < 1:
                raise InputError(f"trainer.{name} is {value}; expected at least 1")
        if self._model_registry:
            raise InputError(
                "trainer.model_registry is not supported: no checkpoint is uploaded; write one for"
                " others with palinka export"
            )

    @property
    def log_dir(self) -> str | None:
        """The run's folder whatever the loggers; all processes must call this."""
        folder = self.strategy.broadcast(self.run_folder)
        return super().log_dir if folder is None else str(folder)

    def harvest(self, model: pl.LightningModule, datamodule: ActivationDataModule) -> None:
        """Fill the cache of activations and stop; every device writes its own shards."""

        def work() -> None:
            self.strategy.connect(model)  # a strategy with a mesh hands it to the model
            self.strategy.setup_environment()
            datamodule.harvest(
                rank=self.global_rank,
                world_size=self.world_size,
                barrier=self.strategy.barrier,
            )

        launcher = self.strategy.launcher
        if launcher is None:
            work()
        else:
            launcher.launch(work, trainer=self)

    def verify(self, model: pl.LightningModule, datamodule: ActivationDataModule) -> None:
        """Read every byte of the caches of both splits, and say what was found."""
        for cache in datamodule.verify():
            print(f"{cache.folder}: {cache.rows:,} rows, {cache.bytes:,} bytes, all as written")


def _in_order(callbacks: list[Callback]) -> list[Callback]:
    """Those of others, which may replace weights when training ends, then those that see them."""
    saving = [c for c in callbacks if isinstance(c, Checkpoint)]
    ours = [c for c in callbacks if type(c).__module__.startswith("palinka.") and c not in saving]
    others = [c for c in callbacks if c not in saving and c not in ours]
    return [*others, FinalWeights(), *ours, *saving]


# Imported so that YAML may name these classes by their short names.

# What a log folder may suffer from; any other OSError is a fault of the program.
UNUSABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST,
)  # fmt: skip
# What Lightning itself resolves, once there is a trainer.
CHECKPOINT_KEYWORDS = ("best", "hpc", "registry")
_Error = TypeVar("_Error", bound=Exception)
# The commands that write to a folder of their own.
RUNS = ("fit", "validate", "test", "predict")
# What shells report of a process that SIGTERM ended.
STOPPED = 128 + signal.SIGTERM


class SaveConfig(SaveConfigCallback):
    """Saves the configuration beside the logs, and as text in TensorBoard.

    Args:
        *args: Lightning's.
        goes_on: Whether TensorBoard has the configuration from the run's beginning.
        **kwargs: Lightning's.
    """

    def __init__(self, *args: Any, goes_on: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._goes_on = goes_on

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the configuration to every TensorBoard among the loggers."""
        if self._goes_on:
            return
        text = self.parser.dump(self.config, skip_none=False)
        for writer in callbacks.tensorboard_writers(trainer):
            writer.add_text("config", "```yaml\n" + text.replace("```", "'''") + "\n```", 0)


def module(variants: Variants | None = None, **arguments: Any) -> SparseAutoencoderModule:
    """The module of one autoencoder, and what those of a sweep have different.

    Args:
        variants: Trains one autoencoder for each of a list of overrides, such as
            `[{k: 16}, {k: 32, seed: 1}]`, or for every combination of a grid, such as
            `{k: [16, 32], seed: [0, 1]}`, on one pass over the same batches. A name is an argument
            of the autoencoder, `autoencoder` for its class, `seed`, or a setting of `model`. Only
            `fit` reads it.
        **arguments: The module's.
    """
    return SparseAutoencoderModule(**arguments)


class PalinkaCLI(LightningCLI):
    """LightningCLI for one module and one data module, with palinka's defaults."""

    trainer: Trainer

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = move_configs_first(arguments)
        # The checkpoint's file, and the log folder of a run that goes on.
        self._checkpoint: str | None = None
        self._continued: Path | None = None
        # What each variant of a sweep overrides, by its name; none of an ordinary run.
        self._variants: dict[str, dict[str, Any]] = {}
        super().__init__(
            module,
            ActivationDataModule,
            trainer_class=Trainer,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            parser_class=ConfigArgumentParser,
            parser_kwargs={"prog": "palinka", "allow_abbrev": False},
            # The module states its own hyper-parameters: those that the parser would store
            # lack what is linked at instantiation.
            load_from_checkpoint_support=False,
            auto_configure_optimizers=False,
            args=self._arguments,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the autoencoder take its widths from the data."""
        parser.set_defaults({"model.autoencoder": {"class_path": "KSparseAutoencoder"}})
        for source, target in (("width", "input_dim"), ("target_width", "output_dim")):
            parser.link_arguments(
                f"data.{source}", f"model.autoencoder.init_args.{target}", apply_on="instantiate"
            )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's commands that make sense here, `harvest` and `verify`."""
        commands = LightningCLI.subcommands()
        commands["harvest"] = commands["verify"] = {"model", "datamodule"}
        return commands

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse without Lightning's advice against giving arguments in Python."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Layer the settings of a checkpoint over the config files, under the command line.

        Lightning would lay them over the command line too, so that `--model.….k 9` beside
        `--ckpt_path` would silently do nothing.
        """
        command = self.config.subcommand
        path = self.config[command].get("ckpt_path")
        if path is None and command in ("validate", "test", "predict"):
            raise InputError(
                f"{command} measures a trained autoencoder: give --ckpt_path last, or such as "
                f"{LOG_FOLDER}/version_0/checkpoints/last.ckpt"
            )
        if path == "last":
            path = self._last_checkpoint(command)
        if not _is_file_name(path):
            return
        if not Path(path).is_file():
            raise InputError(
                f"there is no checkpoint {path}; fits write theirs below {LOG_FOLDER}/"
            )
        self._checkpoint = str(path)
        settings = read_any(path)["hyper_parameters"]
        if command == "fit" and VARIANTS in settings:
            settings = settings["settings"]
        else:
            settings = settings_of(path)
        going_on = recorded_optimizer(self._continued) if self._continued else {}
        layer = {**settings, **going_on}
        given = self._arguments
        self._arguments = with_overrides(given, {"model": layer})
        self.config = self.parser.parse_args(self._arguments)
        if command == "fit":
            check_optimizer(self.config[command].model.as_dict(), going_on)
            for line in ignored_settings(given, layer, self.config[command].model.as_dict()):
                rank_zero_warn(line)

    def _last_checkpoint(self, command: str) -> str | None:
        """The newest complete checkpoint of the newest run; a fit then goes on in its folder."""
        settings = self.config[command].trainer
        root, found = runs.folder_of_runs(settings), runs.runs_of(settings)
        if command != "fit":
            return str(runs.last_checkpoint(found, root))
        self._continued = found[0] if found else None
        newest = runs.newest_checkpoint(found[0]) if found else None
        if newest is None:
            rank_zero_warn(f"no complete checkpoint below {root}: the run starts anew")
        return None if newest is None else str(newest)

    def instantiate_classes(self) -> None:
        """Make module and data, and refuse a checkpoint of others before anything is written."""
        # The folder is this run's alone: `runs.reserve` sees to that.
        goes_on = self._continued is not None and self._checkpoint is not None
        self.save_config_kwargs = {"overwrite": True, "goes_on": goes_on}
        given = self.config[self.subcommand]["model"]["variants"]
        if self.subcommand == "fit" and given is not None:
            self._variants = expand(given)
        try:
            super().instantiate_classes()
        except (ValueError, ModuleNotFoundError) as error:
            # The parser's own messages have several lines, and list all that it has tried.
            reason = _behind(error, InputError) or _behind(error, ModuleNotFoundError) or error
            raise InputError(" ".join(str(reason).split())) from error
        if self._variants:
            self.model = self._sweep()
        if self.config_init[self.subcommand].get("ckpt_path") == "last":
            self.config_init[self.subcommand]["ckpt_path"] = self._checkpoint
        if self._checkpoint is not None:
            self.model.check_checkpoint(
                self._checkpoint, self.datamodule, resume=self.subcommand == "fit"
            )
        if self.subcommand == "fit":
            self._check_optimizers()
        trial = self.trainer.fast_dev_run or self.trainer.barebones  # type: ignore[attr-defined]
        if self.subcommand in RUNS and self.trainer.is_global_zero and not trial:
            self.trainer.run_folder = runs.reserve(
                self.trainer, fit=self.subcommand == "fit", run=self._continued
            )

    def _check_optimizers(self) -> None:
        """Make the optimizer and its schedule once, before anything is harvested."""
        try:
            self.model.configure_optimizers()
        except InputError:
            raise
        except (ValueError, TypeError) as error:
            raise InputError(
                f"the optimizer cannot be made: {error}; check model.optimizer and"
                " model.lr_scheduler"
            ) from error

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except Exception:
            if self.trainer.run_folder is not None:
                runs.release(self.trainer, self.trainer.run_folder)
            raise

    def _sweep(self) -> SweepModule:
        """Make every variant as a command line of its own would."""
        shared = self.config["fit"]["seed_everything"]
        members = {}
        for name, overrides in self._variants.items():
            line = [*self._arguments, "--model.variants=null", *options(overrides)]
            try:
                config = self.parser.parse_args(line)
                for unused in ("callbacks", "logger"):
                    config["fit"]["trainer"][unused] = None
                seed = config["fit"]["seed_everything"] if "seed" in overrides else shared
                if seed is not False:
                    seed_everything(seed, workers=True, verbose=False)
                members[name] = self.parser.instantiate_classes(config)["fit"]["model"]
            except ValueError as error:
                refusal = _behind(error, InputError)
                if refusal is None:
                    raise
                raise InputError(f"variant {name}: {refusal}") from error
        if shared is not False:
            seed_everything(shared, workers=True, verbose=False)
        settings = self.config["fit"]["model"].as_dict()
        kept = {n: v for n, v in settings.items() if n not in ("optimizer", "lr_scheduler")}
        return SweepModule(members, kept, self._variants)

    def before_fit(self) -> None:
        """Where a run goes on, take back what it logged after the checkpoint."""
        if self._continued is not None and self.trainer.is_global_zero:
            events = runs.events_of(Path(self._checkpoint)) if self._checkpoint else {}
            callbacks.rewind_logs(self.trainer, events)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add the logger, the checkpoints and the monitors that every run has."""
        settings = self.config_init[self.subcommand]["trainer"]
        if settings["barebones"]:  # to time the steps: nothing else is done, and nothing written
            self.save_config_callback = None
            return super().instantiate_trainer(**kwargs)
        logger = settings["logger"]
        if logger in (None, True):
            kind = runs.RunLogger if self.subcommand == "fit" else TensorBoardLogger
            logger = kind(
                settings["default_root_dir"] or Path.cwd(),
                LOG_FOLDER,
                default_hp_metric=False,
            )
        if isinstance(logger, runs.RunLogger):
            logger.variants = frozenset(self._variants)
        kwargs["logger"] = logger
        if self._variants:
            kwargs["logger"] = list(callbacks.with_variants(logger, self._variants))
        given = settings["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        kwargs["callbacks"] = [*given, *self._standard_callbacks(settings, given)]
        if is_quiet():
            kwargs["enable_progress_bar"] = any(isinstance(c, ProgressBar) for c in given)
            kwargs["enable_model_summary"] = any(isinstance(c, ModelSummary) for c in given)
        if self.subcommand != "fit" and settings["enable_checkpointing"] is None:
            kwargs["enable_checkpointing"] = any(isinstance(c, Checkpoint) for c in given)
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ModuleNotFoundError) as error:
            accelerator = settings["accelerator"]
            if accelerator in ("auto", "cpu"):
                raise
            raise InputError(
                f"trainer.accelerator {accelerator}: {' '.join(str(error).split())}; `auto` takes"
                " what this machine has"
            ) from error

    def _standard_callbacks(self, settings: Any, given: Sequence[Callback]) -> list[Callback]:
        standard: list[Callback] = [callbacks.ThroughputMonitor()]
        if self.subcommand == "fit":
            standard += [callbacks.TensorBoardDashboard(), callbacks.FeatureHistograms()]
            if self._variants:
                standard.append(callbacks.SweepFindings())
            if settings["enable_checkpointing"] is not False and not any(
                isinstance(callback, callbacks.RunCheckpoints) for callback in given
            ):
                standard.append(callbacks.RunCheckpoints())
        if self.subcommand in ("validate", "test") and not any(
            isinstance(callback, callbacks.LanguageModelMetrics) for callback in given
        ):
            standard.append(callbacks.LanguageModelMetrics())
        if self.subcommand == "predict" and not settings["fast_dev_run"]:
            standard.append(callbacks.LatentWriter())
        if is_quiet():
            return standard
        if settings["enable_progress_bar"] is not False and not any(
            isinstance(callback, ProgressBar) for callback in given
        ):
            # Named here because Lightning's choice depends on whether rich is installed.
            # Seldom where every refresh is a line that stays.
            standard.append(TQDMProgressBar(refresh_rate=10 if sys.stderr.isatty() else 100))
        return standard

    def validate(self, **kwargs: Any) -> None:
        """Validate without Lightning's table, which knows no intervals."""
        self.trainer.validate(**{**kwargs, "verbose": False})

    def test(self, **kwargs: Any) -> None:
        """Test without Lightning's table."""
        self.trainer.test(**{**kwargs, "verbose": False})

    def after_validate(self) -> None:
        """End with the figures, and with where they are kept."""
        self.after_fit()

    def after_test(self) -> None:
        """End with the figures, and with where they are kept."""
        if self.trainer.is_global_zero:
            print(callbacks.final_report(self.trainer, "test"))

    def predict(self, **kwargs: Any) -> None:
        """Predict without keeping every batch in memory: `LatentWriter` has written them."""
        self.trainer.predict(**{**kwargs, "return_predictions": False})

    def after_predict(self) -> None:
        """Say where the latents are."""
        wrote = any(isinstance(c, callbacks.LatentWriter) for c in self.trainer.callbacks)
        if self.trainer.is_global_zero and wrote:
            latents = callbacks.log_folder(self.trainer) / "latents"
            print(f"latents in   {callbacks.shell_path(latents)}")

    def after_fit(self) -> None:
        """End with the figures, and with where they are kept."""
        if self.trainer.is_global_zero:
            if isinstance(self.model, SweepModule):
                print(callbacks.sweep_report(self.trainer, self.model))
            else:
                print(callbacks.final_report(self.trainer))


class ParsersAlone(PalinkaCLI):
    """Builds the parsers and makes nothing.

    Attributes:
        found: The parser of each command.
    """

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Keep the parsers, and parse nothing."""
        self.found = dict(self._subcommand_parsers)
        self.config = Namespace({"subcommand": None})  # type: ignore[no-untyped-call]

    def _parse_ckpt_path(self) -> None:
        """There is no checkpoint."""

    def _set_seed(self) -> None:
        """Nothing is drawn."""

    def instantiate_classes(self) -> None:
        """Make nothing."""


def run(arguments: Sequence[str]) -> int:
    """Run one command of the command line.

    Args:
        arguments: The command and its options, without the program's name.

    Returns:
        The exit status: 1 where a fit ended well, but an analysis after it did not; 143 where
        SIGTERM has stopped the run.

    Raises:
        InputError: If the command line, a file it names or the data cannot be used.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_without_advertisement)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING if is_quiet() else logging.INFO)
    # The loader reads ahead in a thread of its own; worker processes would slow it down.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # Lightning's own affair with a newer torch.
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    # The folder is the run's own, and the rows before the checkpoint are kept.
    warnings.filterwarnings("ignore", ".*Previous log files in this directory will be deleted.*")
    # Measuring a checkpoint needs none of the callbacks that were there when it was written.
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")
    try:
        trainer = PalinkaCLI(arguments).trainer
    except SIGTERMException:
        return STOPPED
    except torch.OutOfMemoryError as error:
        raise InputError(f"out of memory: {error}; try a smaller data.batch_size") from error
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        raise InputError(
            f"{error.filename2 or error.filename or 'the log folder'}: {error.strerror}; make room,"
            " or choose another trainer.default_root_dir"
        ) from error
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        refusal = _behind(error, InputError)
        if refusal is None and not _is_lightnings(error):
            raise
        raise refusal or InputError(" ".join(str(error).split())) from error
    watching: list[Callback] = trainer.callbacks
    analyses = [c for c in watching if isinstance(c, callbacks.RunAnalyses)]
    return int(any(callback.failed for callback in analyses))


def parsers() -> dict[str, LightningArgumentParser]:
    """The parser of each command here."""
    return ParsersAlone(["fit"]).found


def _behind(error: BaseException | None, kind: type[_Error]) -> _Error | None:
    """The error of a kind that the parser has met while it made a class, and wrapped in its own."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _is_lightnings(error: Exception) -> bool:
    """Whether Lightning has raised it itself, which it does where settings cannot be."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_in = str(frame.f_globals.get("__name__"))
    return raised_in.startswith("lightning.") and not isinstance(error, torch.AcceleratorError)


def _is_file_name(checkpoint: str | None) -> TypeGuard[str]:
    named = checkpoint and checkpoint not in CHECKPOINT_KEYWORDS
    return bool(named) and "://" not in str(checkpoint)


def _without_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()
