"""What stops a run from within, for `test_resume.py`."""

import os
import signal
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Stops(Callback):
    """Ends the run `by` a signal or an exception, in the step after `after_steps`.

    On several devices each of the `ranks` is told to.
    """

    def __init__(
        self, by: str, after_steps: int, in_validation: bool = False, ranks: Sequence[int] = (0,)
    ) -> None:
        self.ranks = ranks
        self.by = by
        self.after_steps = after_steps
        self.in_validation = in_validation

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.in_validation:
            self.stop(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.in_validation and not trainer.sanity_checking:
            self.stop(trainer)

    def stop(self, trainer: Trainer) -> None:
        if trainer.global_step != self.after_steps or trainer.global_rank not in self.ranks:
            return
        if self.by == "exception":
            raise RuntimeError("the callback has had enough")
        os.kill(os.getpid(), getattr(signal, self.by))
