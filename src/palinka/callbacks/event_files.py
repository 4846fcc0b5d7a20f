"""Letting TensorBoard's files go on where a checkpoint was written."""

import os
from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch as pl

from palinka.callbacks.dashboard import tensorboard_writers

EVENT_FILES = "events.out.tfevents.*"


def event_file_sizes(trainer: pl.Trainer) -> dict[str, int]:
    """How long every event file of the run is when all that was logged has been written.

    Returns:
        File name to bytes; empty on processes that do not log.
    """
    sizes = {}
    for writer in tensorboard_writers(trainer):
        writer.flush()
        for path in Path(writer.log_dir).glob(EVENT_FILES):
            sizes[path.name] = path.stat().st_size
    return sizes


def rewind_events(folder: Path, sizes: Mapping[str, int]) -> None:
    """Take back what a run logged after a checkpoint, which it will log again.

    Args:
        folder: The log folder of the run; nothing in it may be open for writing.
        sizes: What `event_file_sizes` found for the checkpoint.
    """
    for path in folder.glob(EVENT_FILES):
        size = sizes.get(path.name, 0)
        if size == 0:
            path.unlink()
        elif path.stat().st_size > size:
            os.truncate(path, size)
