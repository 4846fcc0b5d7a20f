"""A data module of given rows, and a trainer that leaves nothing behind."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader


@dataclass
class Statistics:
    mean: np.ndarray
    scale: float


class Rows(LightningDataModule):
    """Serves rows in order, in batches, as the project's own data module would."""

    def __init__(
        self,
        rows: Tensor,
        batch_size: int | None = None,
        validation: Tensor | None = None,
        **said: Any,
    ) -> None:
        super().__init__()
        self.rows, self.batch_size = rows, batch_size
        self.validation = rows if validation is None else validation
        for name, value in said.items():
            setattr(self, name, value)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows.split(self.batch_size or len(self.rows)), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        size = self.batch_size or len(self.validation)
        return DataLoader(self.validation.split(size), batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader


class Recorder(Callback):
    """Keeps every step's loss and every step's logged values."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Tensor,
        batch_idx: int,
    ) -> None:
        self.losses.append(float(outputs["loss"]))
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})


@pytest.fixture
def rows_data() -> type[Rows]:
    return Rows


@pytest.fixture
def statistics() -> type[Statistics]:
    return Statistics


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(**options: Any) -> Trainer:
        settings: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "default_root_dir": tmp_path,
            "num_sanity_val_steps": 0,
            **options,
        }
        return Trainer(**settings)

    return make


@pytest.fixture
def rows() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(24, 8)
