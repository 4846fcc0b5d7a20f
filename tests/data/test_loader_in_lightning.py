"""Resuming with a plain Trainer sees the very batches of the run that was never stopped."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from palinka.data import ActivationLoader, Context, MemoryRows

ROWS, BATCH = 33, 6


class Recorder(LightningModule):
    """Learns one number, and remembers which rows it saw in training."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        self.seen.append(batch[:, 0].int().tolist())
        return (batch.mean() - self.weight) ** 2

    def validation_step(self, batch: torch.Tensor) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(
    folder: Path, ckpt_path: Path | None, save: dict[str, Any], trainer: dict[str, Any]
) -> Recorder:
    table = np.arange(ROWS)
    source = MemoryRows(torch.arange(float(ROWS)).reshape(-1, 1), Context(*[table] * 3), "counted")
    module = Recorder()
    # Names sort like the moments they were saved at.
    checkpoint = ModelCheckpoint(folder, "{epoch:02}-{step:03}", save_top_k=-1, **save)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[checkpoint],
            **trainer,
        ).fit(
            module,
            ActivationLoader(source, BATCH, seed=3),
            ActivationLoader(source, BATCH, shuffle=False, drop_last=False),
            ckpt_path=ckpt_path,
        )
    return module


@pytest.mark.parametrize(
    ("save", "trainer"),
    [
        ({"every_n_train_steps": 1}, {"max_epochs": 3}),
        ({"every_n_train_steps": 1}, {"max_epochs": -1, "max_steps": 12}),
        ({"every_n_train_steps": 1}, {"max_epochs": 3, "accumulate_grad_batches": 2}),
        ({"every_n_train_steps": 2}, {"max_epochs": 3, "limit_train_batches": 3}),
        # At the end of an epoch, after its validation, and after one amid an epoch.
        (
            {"every_n_epochs": 1, "save_on_train_epoch_end": True},
            {"max_epochs": 3, "limit_train_batches": 3, "limit_val_batches": 2},
        ),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": False}, {"max_epochs": 3}),
        (
            {"every_n_epochs": 1, "save_on_train_epoch_end": False},
            {"max_epochs": 3, "val_check_interval": 2},
        ),
    ],
)
def test_resumed_runs_see_the_batches_of_the_whole_run(
    tmp_path: Path, save: dict[str, Any], trainer: dict[str, Any]
) -> None:
    whole = fit(tmp_path, None, save, trainer)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) >= 3
    for path in checkpoints:
        steps = torch.load(path, weights_only=True)["global_step"]
        batches = steps * trainer.get("accumulate_grad_batches", 1)
        if "accumulate_grad_batches" in trainer:
            # Five batches are three steps: the last one of an epoch stands alone.
            batches = 5 * (steps // 3) + 2 * (steps % 3)
        resumed = fit(tmp_path / "again", path, save, trainer)
        assert resumed.seen == whole.seen[batches:], path.name
        assert torch.equal(resumed.weight, whole.weight), path.name
