"""A data module of given rows, a trainer that leaves nothing behind, and several processes."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from processes import run_script


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
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Tensor, index: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})


@pytest.fixture(scope="session")
def on_processes(commands: Any) -> Callable[..., AbstractContextManager[None]]:
    """Runs the `main` of a script as torchrun would, in processes with a rank each.

    Leaving the context waits for them; they must have ended well.
    """

    @contextmanager
    def run(script: Path, world_size: int, *arguments: object) -> Iterator[None]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launched_by_torchrun = {
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(world_size)),
            **{"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"},
        }
        started = []
        for rank in range(world_size):
            own = {**launched_by_torchrun, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            given = (str(script), (rank, *arguments), own)
            started.append(commands.context.Process(target=run_script, args=given))
            started[-1].start()
        try:
            yield
            for process in started:
                process.join(200)
                assert process.exitcode == 0
        finally:
            for process in started:
                process.kill()

    return run


@pytest.fixture
def rows_data() -> type[Rows]:
    return Rows


@pytest.fixture
def statistics() -> Callable[..., SimpleNamespace]:
    return lambda mean, scale: SimpleNamespace(mean=mean, scale=scale)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(**options: Any) -> Trainer:
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        settings: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "log_every_n_steps": 1,
            "default_root_dir": tmp_path,
            "num_sanity_val_steps": 0,
            **dict.fromkeys(off, False),
            **options,
        }
        return Trainer(**settings)

    return make


@pytest.fixture
def rows() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(24, 8)
