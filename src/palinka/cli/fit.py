"""The Lightning CLI: `fit`, `validate`, `test`, `predict`, `harvest` and `verify`."""

import logging
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.seed import seed_everything
from lightning.pytorch import callbacks as pl_callbacks
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

# So that YAML may name their classes by short names.
import palinka.atlas
import palinka.autoencoders
import palinka.data  # noqa: F401
from palinka.cli import resume
from palinka.cli.options import CHECKPOINT_KEYWORDS, LOG_FOLDER
from palinka.cli.parser import ArgumentParser
from palinka.cli.sweep import Variants, expand, options
from palinka.cli.trainer import ProgressBar, ProgressLines, Trainer, ignore_warnings
from palinka.data import ActivationDataModule
from palinka.errors import InputError, is_quiet, one_line, shell_path
from palinka.training import SparseAutoencoderModule, SweepModule, callbacks
from palinka.training.callbacks.base import log_folder, with_variants
from palinka.training.callbacks.checkpoints import rewind_logs
from palinka.training.callbacks.summary import final_report, sweep_report
from palinka.training.callbacks.tensorboard import tensorboard_writers
from palinka.training.checkpoint import VARIANTS, read, settings_of

STOPPED = 128 + signal.SIGTERM  # exit status that shells report
# Advertisements, and processors that a newcomer does not miss.
_NOISE = re.compile("litlogger|TPU|HPU")
_Error = TypeVar("_Error", bound=Exception)


class Parser(ArgumentParser, LightningArgumentParser):
    """Lightning's parser with palinka's errors and help."""


class SaveConfig(SaveConfigCallback):
    """Save the configuration beside the logs and, for a new run, as text in TensorBoard."""

    def __init__(self, *args: Any, resumes: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._resumes = resumes

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the configuration to every TensorBoard among the loggers."""
        text = self.parser.dump(self.config, skip_none=False).replace("```", "'''")
        for writer in () if self._resumes else tensorboard_writers(trainer):
            writer.add_text("config", f"```yaml\n{text}\n```", 0)


def module(variants: Variants | None = None, **arguments: Any) -> SparseAutoencoderModule:
    """Make the module of one autoencoder.

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
        self._arguments = list(arguments)
        self._kept: dict[str, Any] = {}  # settings of the checkpoint
        self._checkpoint: str | None = None
        self._resumed: Path | None = None  # log folder of a run to resume
        self._variants: dict[str, dict[str, Any]] = {}  # overrides by name
        super().__init__(
            module,
            ActivationDataModule,
            trainer_class=Trainer,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={"prog": "palinka"},
            # The module saves its own hyper-parameters: the parser's lack linked arguments.
            load_from_checkpoint_support=False,
            auto_configure_optimizers=False,
            args=self._arguments,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add data and model before the trainer, and link the autoencoder's widths to the data."""
        parser.add_lightning_class_args(ActivationDataModule, "data")
        parser.add_lightning_class_args(module, "model")
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({"model.autoencoder": {"class_path": "KSparseAutoencoder"}})
        for source, target in (("width", "input_dim"), ("target_width", "output_dim")):
            width = f"model.autoencoder.init_args.{target}"
            parser.link_arguments(f"data.{source}", width, apply_on="instantiate")

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The given command, or all: Lightning's, `harvest` and `verify`; each parser is slow."""
        names = self._arguments[:1] or [*LightningCLI.subcommands(), "harvest", "verify"]
        own = {"model", "datamodule"}
        return {name: LightningCLI.subcommands().get(name, own) for name in names}

    def add_arguments_to_parser(self, parser: Parser) -> None:  # type: ignore[override]
        """Apply the settings of a checkpoint over the config files, under the command line."""
        parser.add_overrides(self._read_checkpoint)

    def _read_checkpoint(self, config: Namespace) -> dict[str, Any]:
        """Find the checkpoint to resume or measure, and read its settings."""
        if self._variants:  # the line of one of them, whose checkpoint is read
            return self._kept
        command, path = self._arguments[0], config.get("ckpt_path")
        if path is None and command in ("validate", "test", "predict"):
            raise InputError(f"{command} measures a trained autoencoder: give --ckpt_path last")
        if not path or path in CHECKPOINT_KEYWORDS or "://" in path:
            return {}
        root, found = resume.find_runs(config.trainer)
        if command == "fit" and path == "last":
            self._resumed = found[0] if found else None
            newest = resume.newest_checkpoint(found[0]) if found else None
            if newest is None:
                place = found[0] if found else root
                rank_zero_warn(f"{place} has no complete checkpoint: the run starts anew")
                return {}
            path = newest
        else:
            path = resume.checkpoint_named(path, root, found)
        self._checkpoint = str(path)
        settings = read(path, allow_sweep=True)["hyper_parameters"]
        of_sweep = command == "fit" and VARIANTS in settings
        kept = dict(settings["settings"] if of_sweep else settings_of(path))
        record = resume.model_settings(self._resumed / resume.CONFIG) if self._resumed else {}
        # A checkpoint has their states, not their settings.
        kept |= {n: v for n, v in record.items() if n in ("optimizer", "lr_scheduler")}
        files = [Path(str(file)) for file in config.config or ()]
        typed = {resume.IN_CLASS.sub("", each.partition("=")[0]) for each in self._arguments}
        if self._resumed is not None and "--model.autoencoder" not in typed:
            resume.check_class(self._resumed, kept, files)
        self._given, self._kept = (files, typed, config.model.as_dict()), {"model": kept}
        return self._kept

    def _parse_ckpt_path(self) -> None:
        """Compare the settings of a resumed run with those of its beginning and of the files."""
        if self.config.subcommand == "fit" and self._kept:
            model, kept = self.config.fit.model.as_dict(), self._kept["model"]
            resume.check_optimizer(model, kept)
            for line in resume.ignored_settings(*self._given, kept, model):
                rank_zero_warn(line)

    def instantiate_classes(self) -> None:
        """Make and check module and data, and reserve the run's folder."""
        command = self.subcommand
        resumes = self._resumed is not None and self._checkpoint is not None
        # `resume.reserve` gives every run a folder of its own.
        self.save_config_kwargs = {"overwrite": True, "resumes": resumes}
        variants = self.config[command]["model"]["variants"]
        if command == "fit" and variants is not None:
            self._variants = expand(variants)
        try:
            super().instantiate_classes()
        except (ValueError, ModuleNotFoundError) as error:
            # The parser's message has several lines, with all that it tried.
            reason = _cause(error, InputError) or _cause(error, ModuleNotFoundError) or error
            raise InputError(one_line(reason)) from error
        if self._variants:
            self.model = self._sweep()
        else:  # the configuration that is saved has the architecture's own
            for name in ("sparsity_weight", "decorrelation_weight"):
                self.config[command]["model"][name] = getattr(self.model.objective, name)
        given = self.config_init[command]
        if self._checkpoint is not None or given.get("ckpt_path") == "last":
            given["ckpt_path"] = self._checkpoint
        if self._checkpoint is not None:
            self.model.check_checkpoint(self._checkpoint, self.datamodule, resume=command == "fit")
        if command == "fit":
            try:  # before anything is harvested
                self.model.configure_optimizers()
            except (ValueError, TypeError) as error:
                hint = "check model.optimizer and model.lr_scheduler"
                made = InputError(f"the optimizer cannot be made: {error}; {hint}")
                raise _cause(error, InputError) or made from error
        trial = self.trainer.fast_dev_run or self.trainer.barebones  # type: ignore[attr-defined]
        if command == "fit" and self._checkpoint is not None and not trial:
            same = resume.same_settings(self._kept["model"], self.config.fit.model.as_dict())
            resume.check_steps_left(self._checkpoint, self.trainer, resumes=resumes and same)
        if command in LightningCLI.subcommands() and self.trainer.is_global_zero and not trial:
            fit = command == "fit"
            self.trainer.run_folder = resume.reserve(self.trainer, fit=fit, run=self._resumed)

    def _sweep(self) -> SweepModule:
        """Make every variant as its own command line would."""
        shared = self.config["fit"]["seed_everything"]
        members = {}
        for name, overrides in self._variants.items():
            line = [*self._arguments, "--model.variants=null", *options(overrides)]
            try:
                config = self.parser.parse_args(line)
                config["fit"]["trainer"]["callbacks"] = config["fit"]["trainer"]["logger"] = None
                seed = config["fit"]["seed_everything"] if "seed" in overrides else shared
                if seed is not False:
                    seed_everything(seed, workers=True, verbose=False)
                members[name] = self.parser.instantiate_classes(config)["fit"]["model"]
            except ValueError as error:
                cause = _cause(error, InputError)
                if cause is None:
                    raise
                raise InputError(f"variant {name}: {cause}") from error
        if shared is not False:
            seed_everything(shared, workers=True, verbose=False)
        settings = self.config["fit"]["model"].as_dict()
        kept = {n: v for n, v in settings.items() if n not in ("optimizer", "lr_scheduler")}
        return SweepModule(members, kept, self._variants)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add the logger, the checkpoints and the monitors that every run has."""
        settings = self.config_init[self.subcommand]["trainer"]
        if settings["barebones"]:  # to time the steps: nothing is written
            self.save_config_callback = None
            return super().instantiate_trainer(**kwargs)
        logger = settings["logger"]
        if logger in (None, True):
            kind = resume.RunLogger if self.subcommand == "fit" else TensorBoardLogger
            root = settings["default_root_dir"] or Path.cwd()
            logger = kind(root, LOG_FOLDER, default_hp_metric=False)
        if isinstance(logger, resume.RunLogger):
            logger.variants = frozenset(self._variants)
        kwargs["logger"] = logger
        if self._variants:
            kwargs["logger"] = list(with_variants(logger, self._variants))
        given = settings["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        kwargs["callbacks"] = [*given, *self._default_callbacks(settings, given)]
        lines = settings["enable_progress_bar"] is None and not sys.stdout.isatty()
        if lines or is_quiet():
            kwargs["enable_progress_bar"] = _any(given, pl_callbacks.ProgressBar)
        if settings["enable_model_summary"] is None:  # its columns say little about one matrix
            kwargs["enable_model_summary"] = _any(given, pl_callbacks.ModelSummary)
        if self.subcommand != "fit" and settings["enable_checkpointing"] is None:
            kwargs["enable_checkpointing"] = _any(given, pl_callbacks.Checkpoint)
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ModuleNotFoundError) as error:
            if (accelerator := settings["accelerator"]) in ("auto", "cpu"):
                raise
            reason = f"trainer.accelerator {accelerator}: {one_line(error)}"
            raise InputError(f"{reason}; `auto` takes what this machine has") from error

    def _default_callbacks(self, settings: Any, given: Sequence[pl.Callback]) -> list[pl.Callback]:
        fit, predict = self.subcommand == "fit", self.subcommand == "predict"
        wanted = {
            callbacks.ThroughputMonitor: True,
            callbacks.TensorBoardDashboard: fit,
            callbacks.FeatureHistograms: fit,
            callbacks.SweepFindings: bool(self._variants),
            callbacks.RunCheckpoints: fit and settings["enable_checkpointing"] is not False,
            callbacks.LanguageModelMetrics: self.subcommand in ("validate", "test"),
            callbacks.LatentWriter: predict and not settings["fast_dev_run"],
        }
        found = [kind() for kind in wanted if wanted[kind] and not _any(given, kind)]
        bar = not is_quiet() and settings["enable_progress_bar"] is not False
        if bar and not _any(given, pl_callbacks.ProgressBar):
            drawn = sys.stdout.isatty() or settings["enable_progress_bar"]
            found.append(ProgressBar() if drawn else ProgressLines())
        return found

    def _run_subcommand(self, subcommand: str) -> None:
        folder = self.trainer.run_folder
        with nullcontext() if folder is None else resume.hold(self.trainer, folder):
            super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Turn off Lightning's table, which has no intervals, and its list of predictions."""
        kept = {"validate": {"verbose": False}, "test": {"verbose": False}}
        kept["predict"] = {"return_predictions": False}
        return {**super()._prepare_subcommand_kwargs(subcommand), **kept.get(subcommand, {})}

    def before_fit(self) -> None:
        """Remove what a resumed run logged after the checkpoint."""
        if self._resumed is not None and self.trainer.is_global_zero:
            path = self._checkpoint
            run = read(path, allow_sweep=True).get("run", {}) if path else {}
            rewind_logs(self.trainer, run.get("events", {}))

    def after_fit(self) -> None:
        """Print the final metrics and the output paths."""
        if not self.trainer.is_global_zero:
            return
        if isinstance(self.model, SweepModule):
            print(sweep_report(self.trainer, self.model))
        else:
            print(final_report(self.trainer, "test" if self.subcommand == "test" else "val"))

    after_validate = after_test = after_fit

    def after_predict(self) -> None:
        """Print the path of the latents."""
        if self.trainer.is_global_zero and _any(self.trainer.callbacks, callbacks.LatentWriter):
            print(f"latents in   {shell_path(log_folder(self.trainer) / 'latents')}")


def run(command: str, arguments: Sequence[str]) -> int:
    """Run a command; its exit status is 1 if an analysis failed, and 143 after SIGTERM."""
    advertisements = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    advertisements.addFilter(lambda record: not _NOISE.search(record.getMessage()))
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING if is_quiet() else logging.INFO)
    ignore_warnings()
    try:
        trainer = PalinkaCLI([command, *arguments]).trainer
    except SIGTERMException:
        return STOPPED
    except torch.OutOfMemoryError as error:
        raise InputError(f"out of memory: {error}; try a smaller data.batch_size") from error
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        cause = _cause(error, InputError)
        if cause is None and not _raised_by_lightning(error):
            raise
        raise cause or InputError(one_line(error)) from error
    analyses = [c for c in trainer.callbacks if isinstance(c, callbacks.RunAnalyses)]
    return int(any(callback.failed for callback in analyses))


def _any(given: Sequence[pl.Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in given)


def _cause(error: BaseException | None, kind: type[_Error]) -> _Error | None:
    """An error of a kind in the chain of errors that the parser wrapped it in."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _raised_by_lightning(error: Exception) -> bool:
    """Return whether Lightning raised an error, which it does for unusable settings."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_in = str(frame.f_globals.get("__name__"))
    return raised_in.startswith("lightning.") and not isinstance(error, torch.AcceleratorError)
