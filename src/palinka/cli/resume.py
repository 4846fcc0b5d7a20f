"""Log directories of runs, and the settings that a resumed run keeps."""

import importlib
import json
import re
import sys
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from palinka.cli.options import LOG_FOLDER, flat
from palinka.cli.parser import imported
from palinka.data.writer import locked
from palinka.errors import InputError, expanded, is_quiet, shell_path
from palinka.training import SparseAutoencoderModule, checkpoint
from palinka.training.callbacks.base import VariantLogger
from palinka.training.callbacks.checkpoints import FOLDER, NEWEST, OLDER

CONFIG = "config.yaml"
LOCK = "run.lock"
# Parts of a setting's name that its option does without.
IN_CLASS = re.compile(r"\.(init_args|class_path)\b")
_VERSION = re.compile(r"version_(\d+)")
# Loggers that write to `<save_dir>/<name>/version_<N>`, which then is the run's folder.
_IN_FOLDERS = (TensorBoardLogger, CSVLogger)


class RunLogger(TensorBoardLogger):
    """TensorBoard logger of the metrics that all variants of a sweep share."""

    variants: frozenset[str] = frozenset()  # their names; they have loggers of their own

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the metrics that belong to no variant."""
        shared = {n: v for n, v in metrics.items() if n.partition("/")[0] not in self.variants}
        super().log_metrics(shared, step)


def reserve(trainer: pl.Trainer, *, fit: bool, run: Path | None = None) -> Path:
    """Make the folder of a run for its loggers and checkpoints, on global rank 0.

    A resumed run keeps its folder, `run`. Without a logger that writes to a numbered folder, it is
    `<default_root_dir>/lightning_logs/version_<N>`.
    """
    loggers = _in_folders(trainer)
    unnamed = [logger for logger in loggers if logger._version is None]
    default = Path(trainer.default_root_dir) / LOG_FOLDER
    roots = list({expanded(each.root_dir): 0 for each in unnamed} if loggers else {default: 0})
    name = run.name if run else _make(roots) if roots else ""
    number = _VERSION.fullmatch(name)
    for logger in unnamed:  # a number, which progress bars show whole
        logger._version = int(number[1]) if number else name
    folder = _folder(loggers[0]) if loggers else default / name
    if run is None and (folder / CONFIG).exists():
        remedy = "give the logger another version, or resume that run with --ckpt_path last"
        raise InputError(f"{folder} already has a run: {remedy}")
    (folder / FOLDER if fit else folder).mkdir(parents=True, exist_ok=True)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder / FOLDER)
    return folder


@contextmanager
def hold(trainer: pl.Trainer, run: Path) -> Iterator[None]:
    """Lock the folder of a run, and `release` it after an error; a kill leaves no lock."""
    mine = False
    try:
        with locked(run / LOCK, blocking=False) as mine:
            if not mine:
                remedy = "wait for it, or start a new run without --ckpt_path"
                raise InputError(f"{shell_path(run)} is being trained by another process; {remedy}")
            yield
    except Exception:
        if mine:
            release(trainer, run)
        raise


def release(trainer: pl.Trainer, folder: Path) -> None:
    """Remove the folders of a run that failed before it wrote anything."""
    for own in (folder, *map(_folder, _in_folders(trainer))):
        for empty in (own / FOLDER, own, own.parent):
            with suppress(OSError):
                empty.rmdir()


def _make(roots: Iterable[Path]) -> str:
    """Make a folder of one new name, `version_<N>`, in each of several folders.

    `mkdir` decides between runs that start at the same time.
    """
    there = [path.name for root in roots if root.is_dir() for path in root.iterdir()]
    number = max((int(m[1]) for m in map(_VERSION.fullmatch, there) if m), default=-1) + 1
    made: list[Path] = []
    try:
        for root in roots:
            folder = root / f"version_{number}"
            folder.mkdir(parents=True)
            made.append(folder)
    except (FileExistsError, FileNotFoundError):  # the latter where `release` was faster
        for folder in made:
            folder.rmdir()
        return _make(roots)
    return f"version_{number}"


def _in_folders(trainer: pl.Trainer) -> list[TensorBoardLogger | CSVLogger]:
    found = (logger for logger in trainer.loggers if isinstance(logger, _IN_FOLDERS))
    return [logger for logger in found if not isinstance(logger, VariantLogger)]


def _folder(logger: TensorBoardLogger | CSVLogger) -> Path:
    version = logger.version
    name = version if isinstance(version, str) else f"version_{version}"
    return expanded(logger.root_dir) / name


def find_runs(trainer: Any) -> tuple[Path, list[Path]]:
    """Find the folder of all runs, and the log folders of fits in it, newest first.

    The first logger with numbered folders in section `trainer` names it, and maybe a version.
    """
    loggers = trainer["logger"]
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        kind = imported(getattr(logger, "class_path", ""))
        if isinstance(kind, type) and issubclass(kind, _IN_FOLDERS):
            given = kind(**logger.as_dict().get("init_args", {}))
            root = expanded(given.root_dir)
            if given._version is None:
                return root, runs_below(root)
            return root, [run for run in [_folder(given)] if (run / FOLDER).is_dir()]
    root = expanded(trainer["default_root_dir"] or ".") / LOG_FOLDER
    return root, runs_below(root)


def runs_below(root: Path) -> list[Path]:
    """Log folders of fits, newest first; those without `checkpoints/` are of other commands."""
    folders = [path.parent for path in root.glob(f"*/{FOLDER}/")]
    found = [(int(m[1]), run) for run in folders if (m := _VERSION.fullmatch(run.name))]
    return [run for _, run in sorted(found, reverse=True)]


def checkpoint_named(
    given: str, root: Path = Path(LOG_FOLDER), runs: Sequence[Path] | None = None
) -> Path:
    """Find the checkpoint of a command's `--ckpt_path`.

    `last` is the newest complete one of the newest of the `runs`, by default those in `root`, that
    has any; the folder of a run is its newest one.
    """
    path = expanded(given)
    if given != "last" and (path / FOLDER).is_dir():
        root, runs = path, [path]
    elif given != "last":
        return path
    for run in runs_below(root) if runs is None else runs:
        if any((run / FOLDER / name).exists() for name in (NEWEST, OLDER)):
            if newest := newest_checkpoint(run):
                return newest
            break
    raise InputError(f"there is no complete checkpoint below {root}; fit one first")


def findings_folder(path: Path) -> Path:
    """Folder of findings: `analyses/` of the run, or `analyses/<name>/` beside the file."""
    folder = path.absolute().parent
    return folder.parent / "analyses" if folder.name == FOLDER else folder / "analyses" / path.stem


def newest_checkpoint(run: Path) -> Path | None:
    """Find the newest complete checkpoint of a run; a damaged one is skipped with a warning."""
    for path in (run / FOLDER / NEWEST, run / FOLDER / OLDER):
        if path.exists():
            try:
                check_whole(path)
            except InputError as error:
                rank_zero_warn(f"{error}; skipped, looking for an older one")
            else:
                return path
    return None


def load_module(path: Path) -> SparseAutoencoderModule:
    """Load the module of a checkpoint for inference, print its path, and import its class."""
    if not is_quiet():
        print(f"checkpoint   {shell_path(path)}")
    described = checkpoint.read(path)["hyper_parameters"]["autoencoder"]
    module = described["class_path"].rpartition(".")[0]
    if module and module.partition(".")[0] not in sys.stdlib_module_names:
        with suppress(ImportError):
            importlib.import_module(module)
    return SparseAutoencoderModule.load_from_checkpoint(path, map_location="cpu").eval()


def check_whole(path: Path) -> None:
    """Compare the checksums of a checkpoint's parts."""
    checkpoint.read(path, allow_sweep=True)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if damaged is not None:
        raise InputError(f"{path} is damaged in {damaged}")


def same_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether a run keeps the settings of section `model` that it had `before`."""
    then, now = _flat(before), _flat(after)
    return all(now.get(name, value) == value for name, value in then.items())


def check_steps_left(path: str, trainer: pl.Trainer, *, resumes: bool) -> None:
    """Reject a checkpoint after the last step, unless its own run `resumes` to end."""
    state = checkpoint.read(path, allow_sweep=True)
    step, loops = state["global_step"], state.get("loops")  # an imported one has no loops
    epochs = loops["fit_loop"]["epoch_progress"]["current"]["processed"] if loops else 0
    for name, taken in (("max_steps", step), ("max_epochs", epochs)):
        if 0 < (limit := getattr(trainer, name)) <= taken:
            at = f"step {step:,} of {step * limit // taken:,}"
            if not resumes:
                fault = f"nothing to train: the checkpoint is at {at}"
                raise InputError(f"{fault}; raise trainer.{name}")
            rank_zero_info(f"nothing left to train: {at}")
            break


def check_optimizer(model: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Reject an optimizer or schedule other than the recorded one, whose state overrides it."""
    names = [name for name in ("optimizer", "lr_scheduler") if name in recorded]
    now, then = (_flat({name: each.get(name) for name in names}) for each in (model, recorded))
    for name in {**then, **now}:
        if now.get(name) != then.get(name):
            problem = f"model.{name} is {now.get(name)}, but the resumed optimizer was made with"
            remedy = "leave it out, or start a new run without --ckpt_path"
            raise InputError(f"{problem} {then.get(name)}; {remedy}")


def check_class(run: Path, kept: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Reject the newest run where the files name another autoencoder than it has `kept`."""
    trained = _flat(kept)["autoencoder"]
    settings = [(file.name, _flat(model_settings(file)).get("autoencoder")) for file in files]
    for file, name in [each for each in settings if each[1]][-1:]:
        if str(name).rpartition(".")[2] != trained:
            problem = f"{shell_path(run)} trains a {trained}, and {file} names {name}"
            raise InputError(f"{problem}; give --ckpt_path FILE of the run to resume")


def ignored_settings(
    files: Iterable[Path], typed: Collection[str], *models: Mapping[str, Any]
) -> Iterator[str]:
    """Name settings of files that a resumed run ignores, a line each.

    `models` are the settings given by the files, kept in the checkpoint, and of the run.
    """
    given, kept, now = map(_flat, models)
    for name in {name: None for file in files for name in _flat(model_settings(file))}:
        ignored = given.get(name) != now.get(name) == kept.get(name)
        if ignored and name in kept and f"--model.{name}" not in typed:
            stays = f"model.{name} stays {kept[name]}, as the run began"
            yield f"{stays}: the {given.get(name)} of the configuration file is ignored"


def model_settings(path: Path) -> dict[str, Any]:
    """Section `model` of a configuration file; empty where there is none."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    return dict((content or {}).get("model") or {})


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by the names of options; classes go by their own, and tuples become lists."""
    plain = {n: json.loads(json.dumps(v, default=str)) for n, v in flat(settings) if v != {}}
    plain = {n: v.rpartition(".")[2] if n.endswith("class_path") else v for n, v in plain.items()}
    return {IN_CLASS.sub("", name): value for name, value in plain.items()}
