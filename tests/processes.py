"""Commands of palinka in processes of their own, and what stops a run from within."""

import importlib
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from palinka.__main__ import main


def run_command(folder: str, line: list[str], environment: dict[str, str]) -> None:
    """Run a command in a folder, which gets its output, and end the process."""
    os.environ.update(environment)
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if "ROWS_PER_SHARD" in environment:  # so that a small harvest has many shards
        harvest = importlib.import_module("palinka.data.harvest")  # not the function
        harvest.WINDOW_ROWS = int(environment["ROWS_PER_SHARD"])
    sys.argv = ["palinka", *line]
    sys.exit(main(line))


def run_script(path: str, arguments: Sequence[Any], environment: dict[str, str]) -> None:
    """Run the `main` of a script."""
    os.environ.update(environment)
    runpy.run_path(path)["main"](*arguments)


class Stops(Callback):
    """Ends the run `by` a signal or an exception on some ranks, in the step after `after_steps`."""

    def __init__(
        self, by: str, after_steps: int, in_validation: bool = False, ranks: Sequence[int] = (0,)
    ) -> None:
        self.ranks, self.by, self.after_steps = ranks, by, after_steps
        self.in_validation = in_validation

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self.in_validation:
            self.stop(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        if self.in_validation and not trainer.sanity_checking:
            self.stop(trainer)

    def stop(self, trainer: Trainer) -> None:
        if trainer.global_step != self.after_steps or trainer.global_rank not in self.ranks:
            return
        if self.by == "exception":
            raise RuntimeError("the callback has had enough")
        os.kill(os.getpid(), getattr(signal, self.by))
