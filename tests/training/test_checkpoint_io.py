"""A checkpoint is there whole or not at all."""

from pathlib import Path

import pytest
import torch

from palinka.errors import InputError
from palinka.training.checkpoint import DurableCheckpointIO


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "made" / "last.ckpt"
    DurableCheckpointIO().save_checkpoint({"weights": torch.arange(3), "step": 4}, path)
    found = DurableCheckpointIO().load_checkpoint(path)
    assert found["step"] == 4
    assert torch.equal(found["weights"], torch.arange(3))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_write_that_fails_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    DurableCheckpointIO().save_checkpoint({"step": 1}, path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        DurableCheckpointIO().save_checkpoint({"step": 2}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_bytes_are_durable_before_they_have_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[list[str]] = []
    monkeypatch.setattr("os.fsync", lambda _: there.append([f.name for f in tmp_path.iterdir()]))
    DurableCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    assert there == [["last.ckpt.tmp"], ["last.ckpt"]]


class Canary:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("it ran",)


def test_objects_are_not_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"canary": Canary()}, path)
    with pytest.raises(InputError, match="no complete checkpoint"):
        DurableCheckpointIO().load_checkpoint(path, weights_only=False)
    assert "it ran" not in capsys.readouterr().out
