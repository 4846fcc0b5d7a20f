"""Finding the run that `--ckpt_path last` means."""

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch.utils.tensorboard import SummaryWriter

from palinka.callbacks.run_checkpoints import FOLDER, NEWEST, OLDER
from palinka.errors import InputError
from palinka.paths import expanded
from palinka.training import checkpoint

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
