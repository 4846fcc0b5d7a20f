"""Writing checkpoints so that no crash leaves half of one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from palinka.training.checkpoint import unreadable


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's way of saving, but a checkpoint is there whole or not at all.

    The bytes are on the disk before the file has its name, and no copy is made in memory.
    Checkpoints are loaded without pickled objects.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        """Write under a temporary name, make it durable, then give it its own.

        Raises:
            OSError: If it cannot be written; an older file of that name stays as it was.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load_checkpoint(
        self,
        path: _PATH,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load tensors and plain values, and nothing else, whatever Lightning's default is.

        Raises:
            InputError: If the file is torn, damaged or no checkpoint.
        """
        try:
            return super().load_checkpoint(path, map_location, weights_only=True)
        except Exception as error:
            raise unreadable(path, error) from error
