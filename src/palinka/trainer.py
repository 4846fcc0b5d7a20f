"""Lightning's Trainer with what palinka adds to it."""

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.loops.fit_loop import _FitLoop

from palinka.activations import ActivationDataModule
from palinka.training.checkpoint_io import DurableCheckpointIO
from palinka.training.sharding import check_strategy


class FitLoop(_FitLoop):
    """Lightning's loop over epochs, which goes on at an epoch's end exactly, whatever ends it.

    With `max_steps`, Lightning (2.6) takes a checkpoint from the end of an epoch for one from its
    middle, and counts a step and an epoch too many.
    """

    def _iteration_based_training(self) -> bool:
        return False


class Trainer(pl.Trainer):
    """Lightning's Trainer, which writes checkpoints durably and can fill a cache on all devices."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_strategy(self.strategy, self.world_size)
        fit_loop = FitLoop(self, self.fit_loop.min_epochs, self.fit_loop.max_epochs)
        fit_loop.epoch_loop = self.fit_loop.epoch_loop
        self.fit_loop = fit_loop
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:
            self.strategy.checkpoint_io = DurableCheckpointIO()

    def harvest(self, model: pl.LightningModule, datamodule: ActivationDataModule) -> None:
        """Fill the cache of activations and stop; every device writes its own shards."""

        def work() -> None:
            self.strategy.connect(model)  # a strategy with a mesh hands it to the model
            self.strategy.setup_environment()
            datamodule.harvest(
                rank=self.global_rank,
                world_size=self.world_size,
                barrier=self.strategy.barrier,
            )

        launcher = self.strategy.launcher
        if launcher is None:
            work()
        else:
            launcher.launch(work, trainer=self)

    def verify(self, model: pl.LightningModule, datamodule: ActivationDataModule) -> None:
        """Read every byte of the caches of both splits, and say what was found."""
        for cache in datamodule.verify():
            print(f"{cache.folder}: {cache.rows:,} rows, {cache.bytes:,} bytes, all as written")
