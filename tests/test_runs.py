from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace

from palinka.cli.resume import (
    check_whole,
    checkpoint_named,
    findings_folder,
    folder_of_runs,
    log_into,
    newest_checkpoint,
    newest_run,
)
from palinka.errors import InputError


def test_the_newest_run_is_that_of_the_largest_number_with_checkpoints(tmp_path: Path) -> None:
    assert newest_run(tmp_path / "missing") is None
    assert newest_run(tmp_path) is None
    for name in ("version_2", "version_10", "version_x", "version_99999"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    (tmp_path / "version_99999" / "checkpoints").rmdir()  # of another command
    assert newest_run(tmp_path) == tmp_path / "version_10"


def test_runs_are_where_the_logger_writes(tmp_path: Path) -> None:
    trainer = Namespace(logger=None, default_root_dir=None)
    assert folder_of_runs(trainer) == Path("lightning_logs")
    trainer = Namespace(logger=True, default_root_dir="here")
    assert folder_of_runs(trainer) == Path("here/lightning_logs")
    arguments = Namespace(save_dir="there", name="mine", version=None)
    trainer = Namespace(logger=[Namespace(init_args=arguments)], default_root_dir="here")
    assert folder_of_runs(trainer) == Path("there/mine")
    log_into(trainer, Path("there/mine/version_3"))
    assert arguments.version == "version_3"
    log_into(trainer, Path("there/mine/version_4"))
    assert arguments.version == "version_3"


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
    path.parent.mkdir(exist_ok=True)
    torch.save(
        {
            "hyper_parameters": {"autoencoder": {"class_path": "KSparseAutoencoder"}},
            "weights": torch.rand(999),
        },
        path,
    )
    return path.read_bytes()


def test_every_bit_of_a_checkpoint_counts(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    content = checkpoint(path)
    check_whole(path)
    weights = content.index(torch.load(path, weights_only=True)["weights"].numpy().tobytes())
    for damaged in (
        content[:-1],
        content[: len(content) // 2],
        b"",
        bytes(len(content)),
        content[: weights + 99] + bytes([content[weights + 99] ^ 4]) + content[weights + 100 :],
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"last\.ckpt"):
            check_whole(path)


def test_the_older_checkpoint_serves_where_the_newer_is_damaged(tmp_path: Path) -> None:
    last, previous = (tmp_path / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    assert newest_checkpoint(tmp_path) is None
    content = checkpoint(last)
    checkpoint(previous)
    assert newest_checkpoint(tmp_path) == last
    last.write_bytes(content[:-7])
    with pytest.warns(UserWarning, match=r"last\.ckpt.*passed over"):
        assert newest_checkpoint(tmp_path) == previous
    last.unlink()
    assert newest_checkpoint(tmp_path) == previous
    previous.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"previous\.ckpt.*passed over"):
        assert newest_checkpoint(tmp_path) is None


def test_last_is_that_of_the_newest_run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no complete checkpoint below lightning_logs"):
        checkpoint_named("last")
    for version in (9, 10):
        folder = tmp_path / f"lightning_logs/version_{version}/checkpoints"
        folder.mkdir(parents=True)
        checkpoint(folder / "last.ckpt")
    newest = Path("lightning_logs/version_10/checkpoints/last.ckpt")
    assert checkpoint_named("last") == newest
    assert checkpoint_named(str(newest)) == newest
    with pytest.raises(InputError, match=r"there is no checkpoint gone\.ckpt; give `last`, or"):
        checkpoint_named("gone.ckpt")
