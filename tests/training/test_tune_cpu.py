from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from palinka.autoencoders import KSparseAutoencoder
from palinka.language_models import cpu
from palinka.training import SparseAutoencoderModule

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _leave_the_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(cpu, "MIN_WEIGHTS", 1)
    monkeypatch.setattr(cpu, "select_matmul_backend", lambda: ("medium", "why"))
    yield
    torch.set_float32_matmul_precision(before)


def test_the_chosen_library_is_taken() -> None:
    assert cpu.tune_cpu(CPU, 32) == "highest"
    assert torch.get_float32_matmul_precision() == "medium"


def test_small_autoencoders_and_explicit_wishes_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_float32_matmul_precision("high")
    assert cpu.tune_cpu(CPU, 32) == "high"
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(cpu, "MIN_WEIGHTS", 1000)
    cpu.tune_cpu(CPU, 32)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_resumed_run_keeps_its_precision_and_torch_is_left_as_it_was(
    make_trainer: Callable[..., Trainer],
    rows_data: Callable[..., Any],
    rows: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = make_trainer(max_epochs=1)
    seen = []

    class Watched(SparseAutoencoderModule):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            seen.append(torch.get_float32_matmul_precision())
            if len(seen) == 1:
                trainer.save_checkpoint(tmp_path / "last.ckpt")
            return super().training_step(batch, batch_idx)

    trainer.fit(Watched(KSparseAutoencoder(8)), rows_data(rows))
    monkeypatch.setattr(cpu, "select_matmul_backend", lambda: ("highest", "why"))
    path = tmp_path / "last.ckpt"
    make_trainer(max_epochs=2).fit(Watched(KSparseAutoencoder(8)), rows_data(rows), ckpt_path=path)
    assert set(seen) == {"medium"}
    assert torch.get_float32_matmul_precision() == "highest"
