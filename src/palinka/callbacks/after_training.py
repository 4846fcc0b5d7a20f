"""What is written of one trained autoencoder, when it is measured or its fit has ended."""

from abc import ABC, abstractmethod

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from palinka.activations import ActivationDataModule
from palinka.callbacks.trained import refuse_sweep
from palinka.training import SparseAutoencoderModule


class AfterTraining(Callback, ABC):
    """Writes something at the end of `validate` and of `fit`, on the process that logs.

    Attributes:
        what: What it writes, for the warning where it cannot.
    """

    what: str

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a sweep before it is trained."""
        refuse_sweep(self, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write of a checkpoint."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.write_where_possible(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write of what was trained."""
        self.write_where_possible(trainer, pl_module)

    def write_where_possible(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write, or warn where latents are divided over devices or rows come from elsewhere."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data = getattr(trainer, "datamodule", None)
        if (
            not isinstance(module, SparseAutoencoderModule)
            or module.device_mesh is not None
            or not isinstance(data, ActivationDataModule)
        ):
            rank_zero_warn(
                f"no {self.what}: it takes an autoencoder on one device, and the rows of an"
                " ActivationDataModule"
            )
            return
        self.write(trainer, module, data)

    @abstractmethod
    def write(
        self, trainer: pl.Trainer, module: SparseAutoencoderModule, data: ActivationDataModule
    ) -> None:
        """Write what is to be written."""
