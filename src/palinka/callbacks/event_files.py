"""Letting TensorBoard's files go on where a checkpoint was written."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import lightning.pytorch as pl

from palinka.callbacks.dashboard import all_writers
from palinka.callbacks.report import log_folder

EVENT_FILES = "events.out.tfevents.*"


def event_file_sizes(trainer: pl.Trainer) -> dict[str, int]:
    """How long every event file of the run is when all that was logged has been written.

    Returns:
        File, relative to the log folder, to bytes; empty on processes that do not log.
    """
    sizes = {}
    for writer in all_writers(trainer):
        writer.flush()
        for path in Path(writer.log_dir).glob(EVENT_FILES):
            sizes[_relative(path, log_folder(trainer))] = path.stat().st_size
    return sizes


def rewind_events(folder: Path, sizes: Mapping[str, int], variants: Iterable[str] = ()) -> None:
    """Take back what a run logged after a checkpoint, which it will log again.

    Args:
        folder: The log folder of the run; nothing in it may be open for writing.
        sizes: What `event_file_sizes` found for the checkpoint.
        variants: The folders in it that hold event files of the same run.
    """
    folders = [folder, *(folder / variant for variant in variants)]
    for path in (path for one in folders for path in one.glob(EVENT_FILES)):
        size = sizes.get(_relative(path, folder), 0)
        if size == 0:
            path.unlink()
        elif path.stat().st_size > size:
            os.truncate(path, size)


def _relative(path: Path, folder: Path) -> str:
    """A file of another logger keeps its plain name."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
