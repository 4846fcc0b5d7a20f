"""Log directories of runs, and the settings that a resumed run keeps."""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch.utils.tensorboard import SummaryWriter

from palinka.cli.parser import config_files
from palinka.errors import InputError, expanded
from palinka.training import checkpoint
from palinka.training.callbacks.checkpoints import FOLDER, NEWEST, OLDER

LOG_FOLDER = "lightning_logs"
_VERSION = re.compile(r"version_(\d+)")


class RunLogger(TensorBoardLogger):
    """Lightning's logger, in a folder that is a run's from the first moment it is there.

    Attributes:
        variants: The names of a sweep's variants, which log for themselves.
    """

    variants: frozenset[str] = frozenset()

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer; where there is none yet, the folder of checkpoints comes first."""
        if self._experiment is None:
            (Path(self.log_dir) / FOLDER).mkdir(parents=True, exist_ok=True)
        writer: SummaryWriter = super().experiment
        return writer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log what is of the run, not of a variant: those have loggers of their own."""
        shared = {n: v for n, v in metrics.items() if n.partition("/")[0] not in self.variants}
        super().log_metrics(shared, step)


def folder_of_runs(trainer: Any) -> Path:
    """Where a trainer with these settings keeps its runs.

    Args:
        trainer: The section `trainer` of a parsed configuration.
    """
    arguments: Any = next(_arguments_of_loggers(trainer), {})
    root = arguments.get("save_dir") or trainer["default_root_dir"] or "."
    return Path(root) / (arguments.get("name") or LOG_FOLDER)


def log_into(trainer: Any, run: Path) -> None:
    """Let the loggers of a configuration write where a run has begun, unless they say where.

    Args:
        trainer: The section `trainer` of a parsed configuration; changed in place.
        run: The log folder of the run.
    """
    for arguments in _arguments_of_loggers(trainer):
        if "version" in arguments and arguments["version"] is None:
            arguments["version"] = run.name


def _arguments_of_loggers(trainer: Any) -> Iterator[Any]:
    """The settings of each logger that is configured, where they say in which folder it writes."""
    loggers = trainer["logger"]
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        arguments = getattr(logger, "init_args", {})
        if "save_dir" in arguments:
            yield arguments


def newest_run(root: Path) -> Path | None:
    """The log folder of the fit that began last, or None.

    Args:
        root: Where the folders `version_0`, `version_1`, … are; those that hold no
            `checkpoints/` are of other commands.
    """
    found = [
        (int(match[1]), folder)
        for folder in (root.iterdir() if root.is_dir() else ())
        if (match := _VERSION.fullmatch(folder.name)) and (folder / FOLDER).is_dir()
    ]
    return max(found)[1] if found else None


def checkpoint_named(given: str) -> Path:
    """The checkpoint that a command's `--ckpt_path` means.

    Args:
        given: A file, or `last` for the newest checkpoint of the newest run in this folder.

    Raises:
        InputError: If there is none.
    """
    if given != "last":
        path = expanded(given)
        if not path.exists():
            raise InputError(
                f"there is no checkpoint {path}; give `last`, or one of those below {LOG_FOLDER}/"
            )
        return path
    run = newest_run(Path(LOG_FOLDER))
    newest = newest_checkpoint(run) if run else None
    if newest is None:
        raise InputError(f"there is no complete checkpoint below {LOG_FOLDER}; fit one first")
    return newest


def findings_folder(path: Path) -> Path:
    """The folder with the findings on a checkpoint: `analyses/` of the run that wrote it.

    A checkpoint that is not in a run's `checkpoints/` has `analyses/<name>/` beside it.
    """
    folder = path.absolute().parent
    if folder.name == FOLDER:
        return folder.parent / "analyses"
    return folder / "analyses" / path.stem


def newest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None; a damaged one is named in a warning."""
    for name in (NEWEST, OLDER):
        path = run / FOLDER / name
        if not path.exists():
            continue
        try:
            check_whole(path)
        except InputError as error:
            rank_zero_warn(f"{error}; passed over, looking for an older one")
            continue
        return path
    return None


def check_whole(path: Path) -> None:
    """Read every byte of a checkpoint and compare checksums.

    Raises:
        InputError: If it is torn or damaged, or no checkpoint of a sparse autoencoder.
    """
    checkpoint.read_any(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if damaged is not None:
        raise InputError(f"{path} is damaged in {damaged}")


def events_of(path: Path) -> Mapping[str, int]:
    """How long TensorBoard's files were when a checkpoint was written."""
    sizes: Any = checkpoint.read_any(path).get("run", {}).get("events", {})
    return dict(sizes)


# What a checkpoint does not hold, although its state belongs to them.
_OPTIMIZER = ("optimizer", "lr_scheduler")


def recorded_optimizer(run: Path) -> dict[str, Any]:
    """The optimizer and the schedule with which a run began, as its `config.yaml` has them.

    Args:
        run: Its log folder.

    Returns:
        Settings of `model`; none where the run has no such file, or none that can be read.
    """
    model = _mapping(_mapping(_read(run / "config.yaml")).get("model"))
    return {name: model[name] for name in _OPTIMIZER if name in model}


def check_optimizer(model: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Refuse another optimizer or schedule than that whose state the run goes on with.

    Args:
        model: The settings of `model` as they are now.
        recorded: What `recorded_optimizer` has found.

    Raises:
        InputError: If they differ: the state would win, and the record of the run be false.
    """
    for name, began in recorded.items():
        now, then = _flat({name: model.get(name)}), _flat({name: began})
        for setting in {**then, **now}:
            if now.get(setting) != then.get(setting):
                raise InputError(
                    f"model.{setting} is {now.get(setting)}, and the run began with"
                    f" {then.get(setting)}, which its {name} goes on with; leave it out, or begin a"
                    " run of its own, without --ckpt_path"
                )


def passed_over(
    arguments: Sequence[str], kept: Mapping[str, Any], model: Mapping[str, Any]
) -> Iterator[str]:
    """Say which settings of configuration files those of the checkpoint have taken the place of.

    Args:
        arguments: The command line, its files first.
        kept: The settings of `model` that win over the files.
        model: Those that hold, with what the command line has set.
    """
    asked: dict[str, Any] = {}
    for file in config_files(arguments):
        asked |= _flat(_mapping(_mapping(_read(Path(file))).get("model")))
    stays, holds = _flat(kept), _flat(model)
    for name, value in asked.items():
        if name in stays and stays[name] == holds.get(name) and not _same(stays[name], value):
            yield (
                f"model.{name} stays {stays[name]}, as the run began: the {value} of the"
                " configuration file is passed over"
            )


def _same(kept: Any, given: Any) -> bool:
    """Whether a file means what is kept: `Adam` is a short name of `torch.optim.Adam`."""
    if isinstance(kept, str) and isinstance(given, str):
        return kept.rpartition(".")[2] == given.rpartition(".")[2]
    # 1e-4 without a point is text to YAML.
    return bool(kept == given) or str(kept) == str(given) or _number(given) == kept


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names; lists as JSON has them."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = json.loads(json.dumps(value, default=str))
    return found
