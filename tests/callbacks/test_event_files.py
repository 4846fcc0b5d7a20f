from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from palinka.training.callbacks.checkpoints import event_file_sizes, rewind_events


def test_rewinding_takes_back_what_came_after(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "logs", version="version_0")
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[logger])
    logger.log_metrics({"loss": 1.0}, step=0)
    sizes = event_file_sizes(trainer)
    (file,) = Path(logger.log_dir).glob("events.*")
    assert sizes == {file.name: file.stat().st_size}
    before = file.read_bytes()

    logger.log_metrics({"loss": 2.0}, step=1)
    logger.finalize("success")
    assert len(file.read_bytes()) > len(before)
    later = file.with_name("events.out.tfevents.9999999999.host.1.0")
    later.write_bytes(b"of a run that was killed")
    other = file.with_name("hparams.yaml")
    other.write_text("k: 1")

    rewind_events(file.parent, sizes)
    assert file.read_bytes() == before
    assert not later.exists()
    assert other.exists()


def test_other_processes_have_no_files(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=False, loggers=[TensorBoardLogger(tmp_path)])
    assert event_file_sizes(trainer) == {}
