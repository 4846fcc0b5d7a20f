"""Log directories of runs, and the settings that a resumed run keeps."""

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from palinka.cli.parser import config_files, imported
from palinka.errors import InputError, expanded
from palinka.training import checkpoint
from palinka.training.callbacks.checkpoints import FOLDER, NEWEST, OLDER
from palinka.training.callbacks.variants import VariantLogger

LOG_FOLDER = "lightning_logs"
CONFIG = "config.yaml"
_VERSION = re.compile(r"version_(\d+)")
# The loggers that write to `<save_dir>/<name>/version_<N>`, where the run's folder then is.
_IN_FOLDERS = (TensorBoardLogger, CSVLogger)


class RunLogger(TensorBoardLogger):
    """Logs what all variants of a sweep share.

    Attributes:
        variants: The names of a sweep's variants, which log for themselves.
    """

    variants: frozenset[str] = frozenset()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log what is of the run, not of a variant: those have loggers of their own."""
        shared = {n: v for n, v in metrics.items() if n.partition("/")[0] not in self.variants}
        super().log_metrics(shared, step)


def reserve(trainer: pl.Trainer, *, fit: bool, run: Path | None = None) -> Path:
    """Make the folder of a run, and let its loggers and checkpoints be written there.

    `mkdir` decides between runs that start at the same time. Without a logger that writes to a
    numbered folder, it is `<default_root_dir>/lightning_logs/version_<N>`.

    Args:
        trainer: Its loggers have not logged yet; on the process with global rank 0.
        fit: Whether checkpoints will be written.
        run: The folder of a run to resume.

    Returns:
        The folder.

    Raises:
        InputError: If a logger names the folder of another run.
    """
    loggers = _in_folders(trainer)
    unnamed = [logger for logger in loggers if logger._version is None]
    default = Path(trainer.default_root_dir) / LOG_FOLDER
    roots = {_root(logger): None for logger in unnamed} if loggers else {default: None}
    name = run.name if run else _make(roots) if roots else ""
    for logger in unnamed:
        logger._version = name
    folder = _folder(loggers[0]) if loggers else default / name
    if run is None and (folder / CONFIG).exists():
        raise InputError(
            f"{folder} holds a run already: give the logger another version, or resume that run"
            " with --ckpt_path last"
        )
    (folder / FOLDER if fit else folder).mkdir(parents=True, exist_ok=True)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder / FOLDER)
    return folder


def release(trainer: pl.Trainer, folder: Path) -> None:
    """Remove the folders of a run that failed before it wrote anything."""
    for own in (folder, *map(_folder, _in_folders(trainer))):
        for empty in (own / FOLDER, own, own.parent):
            with suppress(OSError):
                empty.rmdir()


def _make(roots: Iterable[Path]) -> str:
    """Make a folder of one new name, `version_<N>`, in each of several folders."""
    there = [path.name for root in roots if root.is_dir() for path in root.iterdir()]
    number = max((int(m[1]) for m in map(_VERSION.fullmatch, there) if m), default=-1)
    while True:
        number += 1
        made: list[Path] = []
        for root in roots:
            root.mkdir(parents=True, exist_ok=True)
        try:
            for root in roots:
                folder = root / f"version_{number}"
                folder.mkdir()
                made.append(folder)
        except (FileExistsError, FileNotFoundError):  # the latter where `release` was faster
            for folder in made:
                folder.rmdir()
        else:
            return f"version_{number}"


def _in_folders(trainer: pl.Trainer) -> list[TensorBoardLogger | CSVLogger]:
    return [
        logger
        for logger in trainer.loggers
        if isinstance(logger, _IN_FOLDERS) and not isinstance(logger, VariantLogger)
    ]


def _root(logger: TensorBoardLogger | CSVLogger) -> Path:
    return expanded(logger.root_dir)


def _folder(logger: TensorBoardLogger | CSVLogger) -> Path:
    return _root(logger) / _folder_name(logger.version)


def _folder_name(version: int | str) -> str:
    return version if isinstance(version, str) else f"version_{version}"


def folder_of_runs(trainer: Any) -> Path:
    """Where a trainer with these settings keeps its runs.

    Args:
        trainer: The section `trainer` of a parsed configuration.
    """
    return _place(trainer)[0]


def runs_of(trainer: Any) -> list[Path]:
    """The log folders of the fits of a trainer with these settings, the newest first.

    Args:
        trainer: The section `trainer` of a parsed configuration.
    """
    root, version = _place(trainer)
    if version is None:
        return runs_below(root)
    folder = root / _folder_name(version)
    return [folder] if (folder / FOLDER).is_dir() else []


def runs_below(root: Path) -> list[Path]:
    """The log folders of fits, the newest first.

    Args:
        root: Where the folders `version_0`, `version_1`, … are; those that hold no
            `checkpoints/` are of other commands.
    """
    found = [
        (int(match[1]), folder)
        for folder in (root.iterdir() if root.is_dir() else ())
        if (match := _VERSION.fullmatch(folder.name)) and (folder / FOLDER).is_dir()
    ]
    return [folder for _, folder in sorted(found, reverse=True)]


def _place(trainer: Any) -> tuple[Path, int | str | None]:
    """The folder of the runs, and the version if a logger names one."""
    loggers = trainer["logger"]
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        kind = imported(getattr(logger, "class_path", ""))
        if isinstance(kind, type) and issubclass(kind, _IN_FOLDERS):
            given = logger.init_args
            return expanded(Path(given["save_dir"]) / (given["name"] or "")), given["version"]
    return expanded(trainer["default_root_dir"] or ".") / LOG_FOLDER, None


def last_checkpoint(runs: Sequence[Path], root: Path) -> Path:
    """The newest complete checkpoint of the newest run that has written one.

    Args:
        runs: Log folders, the newest first.
        root: Where they are, for the message.

    Raises:
        InputError: If there is none, or that run's are damaged.
    """
    written = (r for r in runs if any((r / FOLDER / name).exists() for name in (NEWEST, OLDER)))
    run = next(written, None)
    newest = newest_checkpoint(run) if run else None
    if newest is None:
        raise InputError(f"there is no complete checkpoint below {root}; fit one first")
    return newest


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
    return last_checkpoint(runs_below(Path(LOG_FOLDER)), Path(LOG_FOLDER))


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
    """Lengths of the loggers' files when a checkpoint was written."""
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
    model = _mapping(_mapping(_read(run / CONFIG)).get("model"))
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


def ignored_settings(
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
