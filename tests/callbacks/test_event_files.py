from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from palinka.training.callbacks.checkpoints import log_positions, rewind_logs


def test_rewinding_takes_back_what_came_after(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "logs", version="version_0")
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[logger])
    logger.log_metrics({"loss": 1.0}, step=0)
    sizes = log_positions(trainer)
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

    trainer.run_folder = file.parent
    logger = TensorBoardLogger(tmp_path, "logs", version="version_0")
    trainer.loggers = [logger, TensorBoardLogger(tmp_path, "others", version="version_0")]
    kept = tmp_path / "others/version_0/events.out.tfevents.1.host.1.0"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"of who knows whom")
    rewind_logs(trainer, sizes)
    assert kept.exists()
    assert file.read_bytes() == before
    assert not later.exists()
    assert other.exists()


def test_other_processes_have_no_files(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=False, loggers=[TensorBoardLogger(tmp_path)])
    assert log_positions(trainer) == {}


def test_a_csv_file_keeps_its_rows_up_to_the_checkpoint(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "logs", version=0)
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[logger])
    assert log_positions(trainer) == {"metrics.csv": 0}
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.log_metrics({"loss": 0.5}, step=1)
    positions = log_positions(trainer)
    assert positions == {"metrics.csv": 2}
    logger.log_metrics({"loss": 0.25, "val": 3.0}, step=2)  # a column more
    logger.finalize("success")

    resumed = CSVLogger(tmp_path, "logs", version=0)
    trainer.loggers = [resumed]
    rewind_logs(trainer, positions)
    resumed.log_metrics({"loss": 0.75}, step=2)
    resumed.finalize("success")
    path = tmp_path / "logs/version_0/metrics.csv"
    assert path.read_text().split() == ["loss,step,val", "1.0,0,", "0.5,1,", "0.75,2,"]
