"""Folders of runs, reserved in process and by the commands."""

import functools
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from palinka.__main__ import main
from palinka.autoencoders import KSparseAutoencoder
from palinka.autoencoders.formats import Provenance
from palinka.cli.convert import write_checkpoint
from palinka.cli.resume import (
    check_optimizer,
    check_whole,
    checkpoint_named,
    find_runs,
    findings_folder,
    load_module,
    newest_checkpoint,
    release,
    reserve,
    runs_below,
)
from palinka.cli.trainer import Trainer
from palinka.errors import InputError

DATA = [
    "--data.train_tokens=2048", "--data.validation_tokens=512", "--data.batch_size=256",
    "--data.context_length=64", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=2",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
]  # fmt: skip
SMALL = [
    "fit", *DATA, "--model.autoencoder.latent_dim=96", "--model.autoencoder.k=8",
    "--trainer.max_epochs=1",
]  # fmt: skip


trainer = functools.partial(Trainer, accelerator="cpu", enable_progress_bar=False)


def configured(kind: type[Logger], **arguments: Any) -> Namespace:
    given = {"save_dir": "there", "name": "mine", "version": None, **arguments}
    path = f"{kind.__module__}.{kind.__qualname__}"
    return Namespace(class_path=path, init_args=Namespace(**given))


def test_runs_are_where_the_first_logger_with_numbered_folders_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a clone has runs of its own after `make demo`

    def found(logger: Any, root: str | None = "here") -> tuple[Path, list[Path]]:
        return find_runs(Namespace(logger=logger, default_root_dir=root))

    assert found(None, None) == (Path("lightning_logs"), [])
    for logger in (True, False, configured(DummyLogger)):
        assert found(logger)[0] == Path("here/lightning_logs")
    several = [configured(DummyLogger), configured(CSVLogger, name="b")]
    assert found([*several, configured(TensorBoardLogger)])[0] == Path("there/b")
    assert found(configured(TensorBoardLogger, name=None))[0] == Path("there")
    for name in ("version_2", "version_10", "version_x"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    (tmp_path / "version_99999").mkdir()  # of another command
    named = {"save_dir": str(tmp_path), "name": ""}
    newest_first = [tmp_path / "version_10", tmp_path / "version_2"]
    assert found(configured(CSVLogger, **named))[1] == newest_first
    assert found(configured(CSVLogger, version=2, **named))[1] == [tmp_path / "version_2"]
    assert found(configured(CSVLogger, version=99999, **named))[1] == []


def test_a_reserved_folder_is_the_next_that_is_free_under_every_logger(tmp_path: Path) -> None:
    one, two = TensorBoardLogger(tmp_path / "one", "a"), CSVLogger(tmp_path / "two", "b")
    (tmp_path / "one/a/version_3").mkdir(parents=True)
    (tmp_path / "two/b").mkdir(parents=True)
    (tmp_path / "two/b/version_4").write_text("not a folder")
    saved = ModelCheckpoint()
    made = trainer(logger=[DummyLogger(), one, two], callbacks=[saved])
    folder = reserve(made, fit=True)
    assert folder == tmp_path / "one/a/version_5"
    assert Path(one.log_dir) == folder
    assert Path(two.log_dir) == tmp_path / "two/b/version_5"
    assert (folder / "checkpoints").is_dir()
    assert (tmp_path / "two/b/version_5").is_dir()
    assert saved.dirpath == str(folder / "checkpoints")
    again = trainer(logger=[TensorBoardLogger(tmp_path / "one", "a")], enable_checkpointing=False)
    assert reserve(again, fit=False) == tmp_path / "one/a/version_6"
    assert runs_below(tmp_path / "one/a") == [folder]
    resumed = CSVLogger(tmp_path / "one", "a")
    assert reserve(trainer(logger=resumed), fit=True, run=folder) == folder
    assert Path(resumed.log_dir) == folder


def test_without_a_logger_in_a_folder_a_run_has_one_of_its_own(tmp_path: Path) -> None:
    for number, logger in enumerate((False, DummyLogger())):
        made = trainer(logger=logger, default_root_dir=tmp_path)
        made.run_folder = reserve(made, fit=True)
        assert made.run_folder == tmp_path / f"lightning_logs/version_{number}"
        assert made.log_dir == str(made.run_folder)


def test_a_version_that_is_taken_is_refused(tmp_path: Path) -> None:
    logger = functools.partial(TensorBoardLogger, tmp_path, "a", version="mine", sub_dir="events")
    folder = reserve(trainer(logger=logger()), fit=True)
    assert folder == tmp_path / "a/mine"
    (folder / "config.yaml").write_text("")
    with pytest.raises(InputError, match=r"a/mine already has a run: give the logger another"):
        reserve(trainer(logger=logger()), fit=True)
    assert reserve(trainer(logger=logger()), fit=True, run=folder) == folder


def test_a_run_that_wrote_nothing_leaves_no_folder(tmp_path: Path) -> None:
    made = trainer(logger=[TensorBoardLogger(tmp_path, "a"), CSVLogger(tmp_path, "b")])
    folder = reserve(made, fit=True)
    (folder / "checkpoints" / "last.ckpt").write_text("")
    release(made, folder)
    assert [path.name for path in folder.iterdir()] == ["checkpoints"]
    (folder / "checkpoints" / "last.ckpt").unlink()
    release(made, folder)
    assert not list(tmp_path.iterdir())


def test_findings_on_a_checkpoint_are_beside_its_run_or_beside_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "lightning_logs" / "version_0"
    for file in ("last.ckpt", "epoch=3-step=9.ckpt"):
        assert findings_folder(run / "checkpoints" / file) == run / "analyses"
    assert findings_folder(tmp_path / "mine.ckpt") == tmp_path / "analyses" / "mine"
    (run / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(run / "checkpoints")
    assert findings_folder(Path("last.ckpt")) == run / "analyses"


def checkpoint(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"autoencoder": {"class_path": "KSparseAutoencoder"}}
    torch.save({"hyper_parameters": settings, "weights": torch.rand(999)}, path)
    return path.read_bytes()


def test_every_bit_of_a_checkpoint_counts(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    content = checkpoint(path)
    check_whole(path)
    weights = content.index(torch.load(path, weights_only=True)["weights"].numpy().tobytes())
    flipped = bytearray(content)
    flipped[weights + 99] ^= 4
    for damaged in (content[:-1], content[: len(content) // 2], b"", bytes(len(content)), flipped):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"last\.ckpt"):
            check_whole(path)


def test_a_class_of_the_users_own_is_imported_with_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "from palinka.autoencoders import KSparseAutoencoder\nclass Own(KSparseAutoencoder): ..."
    (tmp_path / "own_sparse.py").write_text(own)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "own.ckpt"
    write_checkpoint(KSparseAutoencoder(8, 16, k=2), Provenance(), path)
    content = torch.load(path, weights_only=True)
    for name in ("nowhere.Other", "own_sparse.Own"):
        content["hyper_parameters"]["autoencoder"]["class_path"] = name
        torch.save(content, path)
        if name == "nowhere.Other":
            with pytest.raises(InputError, match=r"not a known Autoencoder; .* on PYTHONPATH"):
                load_module(path)
    assert type(load_module(path).autoencoder).__module__ == "own_sparse"


def test_the_older_checkpoint_serves_where_the_newer_is_damaged(tmp_path: Path) -> None:
    last, previous = (tmp_path / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    assert newest_checkpoint(tmp_path) is None
    content = checkpoint(last)
    checkpoint(previous)
    assert newest_checkpoint(tmp_path) == last
    last.write_bytes(content[:-7])
    with pytest.warns(UserWarning, match=r"last\.ckpt.*skipped"):
        assert newest_checkpoint(tmp_path) == previous
    previous.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"previous\.ckpt.*skipped"):
        assert newest_checkpoint(tmp_path) is None


def test_last_is_that_of_the_newest_run_that_has_written_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no complete checkpoint below lightning_logs"):
        checkpoint_named("last")
    newest = Path("lightning_logs/version_10/checkpoints/last.ckpt")
    for path in (Path("lightning_logs/version_9/checkpoints/last.ckpt"), newest):
        checkpoint(path)
    # One that is still harvesting.
    Path("lightning_logs/version_11/checkpoints").mkdir(parents=True)
    assert checkpoint_named("last") == checkpoint_named(str(newest)) == newest
    newest.write_bytes(b"")  # an older run's would be of other settings
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(InputError, match="no complete"):
        checkpoint_named("last")


def test_runs_that_start_at_once_have_a_folder_each(tmp_path: Path) -> None:
    trainers = [trainer(logger=TensorBoardLogger(tmp_path, "a")) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(functools.partial(reserve, fit=True), trainers))
    assert sorted(folders) == [tmp_path / f"a/version_{number}" for number in range(8)]


CSV = {"class_path": "CSVLogger", "init_args": {"save_dir": ".", "name": "csv"}}
TENSORBOARD = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "tb"}}
WRITTEN = [
    "checkpoint in   tb/lightning_logs/version_0/checkpoints/last.ckpt",
    "look at the curves with   tensorboard --logdir tb/lightning_logs",
    "metrics in   csv/version_0/metrics.csv",
]


def test_whatever_the_loggers_runs_have_folders_and_the_last_is_found(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "run.yaml").write_text(yaml.safe_dump({"trainer": {"logger": [TENSORBOARD, CSV]}}))
    assert main([*SMALL, "--config=run.yaml"]) == 0
    out = capsys.readouterr().out.strip().splitlines()
    assert out[out.index("results in   tb/lightning_logs/version_0") + 1 :] == WRITTEN
    told: list[str] = []
    monkeypatch.setattr("palinka.cli.trainer.rank_zero_info", told.append)
    run, metrics = Path("tb/lightning_logs/version_0"), Path("csv/version_0/metrics.csv")
    assert {"config.yaml", "checkpoints"} <= {path.name for path in run.iterdir()}
    assert {path.name for path in workspace.iterdir()} == {"run.yaml", "cache", "csv", "tb"}
    before = metrics.read_text()
    assert main([*SMALL, "--config=run.yaml", "--trainer.max_epochs=2", "--ckpt_path=last"]) == 0
    assert told == ["resuming at step 8 of 16"]
    assert metrics.read_text().startswith(before)
    assert metrics.read_text().count("\n") == 2 * before.count("\n") - 1
    events = EventAccumulator(str(run)).Reload()
    assert [event.step for event in events.Scalars("val/fvu")] == [7, 15]
    assert main(["validate", "--config=run.yaml", *DATA, "--ckpt_path=last"]) == 0
    assert "results in   tb/lightning_logs/version_1" in capsys.readouterr().out


ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001, "betas": [0.9, 0.999]}}


def test_another_optimizer_than_the_runs_is_refused() -> None:
    same = {"optimizer": {**ADAM, "init_args": {"lr": 0.001, "betas": (0.9, 0.999)}}}
    check_optimizer(same, {"optimizer": ADAM})
    other = {"optimizer": {**ADAM, "init_args": {"lr": 0.5, "betas": (0.9, 0.999)}}}
    with pytest.raises(InputError, match=r"model\.optimizer\.lr is 0\.5.*with 0\.001"):
        check_optimizer(other, {"optimizer": ADAM})
    with pytest.raises(InputError, match=r"lr_scheduler is None.*with x"):
        check_optimizer({"lr_scheduler": None}, {"lr_scheduler": {"class_path": "x"}})


def test_a_resumed_run_names_the_settings_that_it_ignores(
    workspace: Path, refused: Any, parsed: list[str]
) -> None:
    settings = {"autoencoder": {"class_path": "KSparseAutoencoder", "init_args": {"k": 8}}}
    file = workspace / "run.yaml"
    file.write_text(yaml.safe_dump({"model": settings}))
    line = ["fit", f"--config={file}", *DATA, "--model.autoencoder.latent_dim=96"]
    line.append("--trainer.max_epochs=1")
    assert main([*line, "--model.autoencoder.tied=false"]) == 0  # which no file says
    longer = [*line, "--trainer.max_epochs=2", "--ckpt_path=last"]
    refusal = refused(*longer, "--model.optimizer.lr=0.5")
    assert "model.optimizer.lr is 0.5" in refusal
    settings["autoencoder"]["init_args"]["k"] = 16
    file.write_text(yaml.safe_dump({"model": settings}))
    parsed.clear()
    with pytest.warns(UserWarning, match="stays") as told:
        assert main(longer) == 0
    assert parsed.count("palinka") == 1
    (ignored,) = [str(each.message) for each in told if " stays " in str(each.message)]
    assert "model.autoencoder.k stays 8, as the run began: the 16 of" in ignored
    record = yaml.safe_load((workspace / "lightning_logs/version_0/config.yaml").read_text())
    assert record["model"]["autoencoder"]["init_args"]["k"] == 8


def test_what_a_run_cannot_resume_is_refused(workspace: Path, refused: Any) -> None:
    settings = {"class_path": "KSparseAutoencoder", "init_args": {"k": 16, "decoder_bias": True}}
    file, run = workspace / "run.yaml", Path("lightning_logs/version_0")
    file.write_text(yaml.safe_dump({"model": {"autoencoder": settings}}))
    line = [*SMALL, f"--config={file}"]
    assert main(line) == 0
    before = sorted(run.rglob("*"))
    own = [*line, f"--ckpt_path={run}/checkpoints/last.ckpt"]
    left = "nothing to train: the checkpoint is at step 8 of"
    assert f"{left} 8; raise trainer.max_epochs" in refused(*own, "--model.autoencoder.k=4")
    changed = [*line, "--ckpt_path=last", "--model.autoencoder.k=4"]
    assert f"{left} 8; raise trainer.max_epochs" in refused(*changed)
    assert f"{left} 5; raise trainer.max_steps" in refused(*own, "--trainer.max_steps=5")
    last = [*line, "--ckpt_path=last", "--trainer.max_epochs=2"]
    with FileLock(run / "run.lock"):
        assert f"{run} is being trained by another process; wait" in refused(*last)
    (run / "run.lock").unlink(missing_ok=True)
    other = {"class_path": "palinka.autoencoders.TopKAutoencoder"}
    file.write_text(yaml.safe_dump({"model": {"autoencoder": other}}))
    trains = f"{run} trains a KSparseAutoencoder, and"
    assert f"{trains} run.yaml names TopKAutoencoder; give --ckpt_path FILE" in refused(*last)
    typed = "--model.autoencoder=BatchTopKAutoencoder"
    assert "holds a KSparseAutoencoder" in refused(*last, typed)
    assert sorted(run.rglob("*")) == before
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    settings["init_args"] = {"k": 32, "decoder_bias": True}
    file.write_text(yaml.safe_dump({"model": {"autoencoder": settings}}))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".* stays ")  # the command line gives `k`
        assert main(last) == 0
    assert not (run / "run.lock").exists()
