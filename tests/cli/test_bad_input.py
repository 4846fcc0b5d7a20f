"""What cannot work is refused in one line, with status 2, and leaves nothing behind."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import load_file, save_file

from palinka.__main__ import main
from palinka.assets import mini_gpt2_folder

SMALL = [
    "--data.train_tokens=2048",
    "--data.validation_tokens=1024",
    "--data.batch_size=256",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "palinka: error:" in line]
    assert len(lines) == 1
    return lines[0].removeprefix("palinka: error: ")


def left_behind(folder: Path) -> list[str]:
    """Every file and folder below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data.site=blocks.3.mlp.prr"], ["blocks.3.mlp.prr", "blocks.3.mlp.pre", "hidden"]),
        (["--data.site=blocks.17.mlp.pre"], ["blocks.17.mlp.pre", "6"]),
        (["--model.autoencoder.k=0"], ["k", "at least 1", "0"]),
        (["--model.autoencoder.k=5000"], ["k", "at most latent_dim", "5000"]),
        (["--data.corpus=TextFiles", "--data.corpus.path=nowhere"], ["nowhere"]),
        (["--data.corpus=TextFiles", "--data.corpus.path=empty"], ["empty"]),
        (["--data.corpus=TextFiles", "--data.corpus.path=short.txt"], ["5 tokens", "128"]),
        (["--data.corpus=TextFiles", "--data.corpus.path=single.txt"], ["validation", "1"]),
        (["--data.corpus=Passage", "--data.corpus.text="], ["passage is empty"]),
        (["--data.language_model=no/such-model"], ["no/such-model"]),
        (["--data.language_model.name=mini", "--data.language_model.dtype=float8"], ["float8"]),
        (["--data.language_model.name=mini", "--data.language_model.device=warp"], ["warp"]),
        (["--data.validation_fraction=1.5"], ["validation_fraction", "1.5"]),
        (["--data.dtype=float8"], ["float8", "float16"]),
        (["--model.sparsity_wieght=1"], ["sparsity_wieght", "model.sparsity_weight"]),
        (["--model.autoencoder=KSparse"], ["KSparse", "KSparseAutoencoder"]),
        (["--model.optimizer.lr=fast"], ["lr: expected float, got 'fast'"]),
        (["--model.optimizer.lr=-1"], ["Invalid learning rate: -1.0", "model.optimizer"]),
        (
            ["--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=0.1"],
            ["total_steps", "model.lr_scheduler"],
        ),
        (["--trainer.callbacks=LearningRateFinder"], ["LearningRateFinder", "model.optimizer.lr"]),
        (["--trainer.accelerator=tpu"], ["accelerator tpu", "torch_xla", "`auto`"]),
        pytest.param(
            ["--trainer.accelerator=gpu"],
            ["accelerator gpu", "`auto`"],
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="there is one"),
        ),
        (["--ckpt_path=none.ckpt"], ["none.ckpt"]),
        (["--ckpt_path=short.txt"], ["short.txt", "checkpoint"]),
    ],
)
def test_options_that_cannot_work(
    options: list[str],
    expected: list[str],
    workspace: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (workspace / "empty").mkdir()
    (workspace / "short.txt").write_text("Too short.")
    (workspace / "single.txt").write_text("One document, and long enough. " * 500)
    before = left_behind(workspace)
    line = refusal(capsys, "fit", *SMALL, "--data.validation_fraction=0.1", *options)
    for part in expected:
        assert part in line
    assert left_behind(workspace) == before


def test_a_schedule_that_ends_before_the_run(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = ["--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=0.1"]
    line = refusal(capsys, "fit", *SMALL, *schedule, "--model.lr_scheduler.total_steps=7")
    assert "OneCycleLR ends after 7 optimizer steps, and the run takes 8: give" in line


def test_a_schedule_as_long_as_the_run(workspace: Path) -> None:
    schedule = ["--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=0.1"]
    assert main(["fit", *SMALL, *schedule, "--model.lr_scheduler.total_steps=8"]) == 0


def test_a_log_folder_below_a_file(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "file").write_text("no folder")
    assert "file" in refusal(capsys, "fit", *SMALL, "--trainer.default_root_dir=file")
    assert left_behind(workspace) == ["file"]


def test_a_batch_beyond_the_training_rows(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "1000000" in refusal(capsys, "fit", *SMALL, "--data.batch_size=1000000")


@pytest.fixture
def broken_model(workspace: Path) -> Path:
    """The bundled model with one weight that is no number."""
    folder = workspace / "broken"
    shutil.copytree(mini_gpt2_folder(), folder)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.3.mlp.c_fc.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("command", ["fit", "harvest"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_activations_that_are_no_numbers(
    command: str,
    in_memory: bool,
    broken_model: Path,
    workspace: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = left_behind(workspace)
    options = ["--data.language_model=./broken", f"--data.in_memory={in_memory}"]
    line = refusal(capsys, command, *SMALL, *options)
    assert ("in_memory" if in_memory and command == "harvest" else "NaN") in line
    assert left_behind(workspace) == before


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("data: {sit: hidden.2}", ["data.sit", "data.site"]),
        ("modl: {k: 3}", ["modl", "model"]),
        ("trainer: {max_epoch: 3}", ["trainer.max_epoch", "trainer.max_epochs"]),
        (
            "model: {autoencoder: {class_path: KSparseAutoencoder, init_args: {kk: 3}}}",
            ["model.autoencoder: ", "kk", "did you mean 'k'"],
        ),
        (
            "data: {corpus: {class_path: TextFiles, init_args: {pth: texts}}}",
            ["data.corpus: Option 'pth' is not accepted; did you mean 'path'?"],
        ),
        ("data: {language_model: {nmae: mini}}", ["data.language_model: ", "did you mean 'name'?"]),
        ("data: {batch_size: many}", ["data.batch_size", "many"]),
        ("data: {", ["config"]),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest(
    content: str, expected: list[str], workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "config.yaml").write_text(content)
    line = refusal(capsys, "fit", "--config", "config.yaml")
    for part in expected:
        assert part in line
    assert left_behind(workspace) == ["config.yaml"]


def test_a_configuration_that_is_not_there(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nowhere.yaml" in refusal(capsys, "fit", "--config", "nowhere.yaml")


@pytest.fixture
def fitted(workspace: Path) -> Path:
    """A checkpoint, and the cache it was trained on."""
    assert main(["fit", *SMALL]) == 0
    return workspace / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"


def caches(workspace: Path) -> list[Path]:
    return [path for path in (workspace / "cache").iterdir() if path.is_dir()]


def training_cache(workspace: Path) -> Path:
    """The larger of the two caches."""
    return max(caches(workspace), key=lambda folder: max(p.stat().st_size for p in shards(folder)))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_a_damaged_cache_is_named(
    fitted: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = shards(training_cache(workspace))[0]
    whole = shard.read_bytes()

    shard.write_bytes(whole[:-1])
    line = refusal(capsys, "fit", *SMALL)
    assert shard.name in line

    shard.unlink()
    line = refusal(capsys, "fit", *SMALL)
    assert shard.name in line
    assert "harvest again" in line

    flipped = bytearray(whole)
    flipped[-2] ^= 1
    shard.write_bytes(flipped)
    for command in ("fit", "harvest"):
        line = refusal(capsys, command, *SMALL)
        assert shard.name in line
        assert "checksum" in line

    shard.write_bytes(whole)
    manifest = training_cache(workspace) / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[: len(text) // 2])
    assert "manifest.json" in refusal(capsys, "fit", *SMALL)

    manifest.write_text(json.dumps(json.loads(text) | {"version": 99}))
    assert "99" in refusal(capsys, "fit", *SMALL)

    manifest.write_text(text)
    assert sorted(path.name for path in (workspace / "lightning_logs").iterdir()) == ["version_0"]
    assert main(["fit", *SMALL]) == 0


def test_a_checkpoint_of_another_model_or_width_or_cache(
    fitted: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume = f"--ckpt_path={fitted}"
    before = left_behind(workspace)
    line = refusal(capsys, "validate", *SMALL, "--data.site=hidden.2", resume)
    assert "512" in line
    assert "128" in line
    line = refusal(capsys, "validate", *SMALL, "--data.site=blocks.1.mlp.pre", resume)
    assert "blocks.3.mlp.pre" in line
    assert "blocks.1.mlp.pre" in line
    line = refusal(capsys, "fit", *SMALL, "--data.seed=7", "--trainer.max_epochs=2", resume)
    assert "cache" in line
    # Neither a cache of what was not wanted, nor a log folder.
    assert left_behind(workspace) == before


def test_a_torn_checkpoint_is_named(
    fitted: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = workspace / "torn.ckpt"
    torn.write_bytes(fitted.read_bytes()[:5000])
    assert "torn.ckpt" in refusal(capsys, "validate", *SMALL, f"--ckpt_path={torn}")


def test_a_cache_folder_that_cannot_be_written(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "file").write_text("no folder")
    line = refusal(capsys, "fit", *SMALL, "--data.cache_dir=file/below")
    assert "file" in line
    assert left_behind(workspace) == ["file"]


def test_a_log_folder_that_cannot_be_written(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "version_0")

    monkeypatch.setattr(TensorBoardLogger, "log_hyperparams", full)
    line = refusal(capsys, "fit", *SMALL)
    assert line.startswith("version_0: No space left on device; ")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_measuring_nothing_that_was_trained(
    command: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, command, *SMALL)
    assert "give --ckpt_path" in line
    assert not list(workspace.iterdir())
