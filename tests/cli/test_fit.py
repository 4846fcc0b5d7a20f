"""The commands as a user types them, on the bundled model, in process.

What cannot work is refused in one line, with status 2, and leaves nothing behind.
"""

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.utils import logging

from palinka.__main__ import main
from palinka.assets import mini_gpt2_folder
from palinka.cli.analyze import encoder_from_checkpoint
from palinka.data import ActivationDataModule
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks import ReportLatents

DATA = [
    "--data.train_tokens=2048", "--data.validation_tokens=1024", "--data.batch_size=256",
    "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=4",
    "--trainer.enable_progress_bar=false",
]  # fmt: skip
FIT = ["fit", *DATA, "--trainer.max_epochs=1"]
SMALL = ["--model.autoencoder.latent_dim=640", "--model.autoencoder.k=16"]
LAST = "lightning_logs/version_0/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one small fit has run."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALINKA_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main([*FIT, *SMALL, "--trainer.max_epochs=2"]) == 0
    return folder


@pytest.fixture
def fitted(trained: Path, workspace: Path) -> Path:
    """A copy of that folder, which is the working folder, with its checkpoint."""
    shutil.copytree(trained, workspace, dirs_exist_ok=True)
    return workspace / LAST


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"tensors": 0, "scalars": 0}).Reload()


def test_fit_leaves_a_checkpoint_a_config_and_events(trained: Path) -> None:
    run = trained / "lightning_logs/version_0"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["autoencoder"]["init_args"]["k"] == 16
    assert "input_dim" not in config["model"]["autoencoder"]["init_args"]
    module = SparseAutoencoderModule.load_from_checkpoint(trained / LAST)
    assert (module.autoencoder.input_dim, module.autoencoder.latent_dim) == (512, 640)
    seen = events(run)
    tags = seen.Tags()
    assert {
        "loss/total", "loss/reconstruction", "loss/sparsity", "loss/decorrelation",
        "reconstruction/fvu", "sparsity/l0", "sparsity/dead", "val/fvu", "val/l0", "val/dead",
        "throughput/tokens_per_second", "throughput/loader_wait", "final/fvu",
    } <= set(tags["scalars"])  # fmt: skip
    assert {"latents/log10_firing_frequency", "latents/nearest_cosine"} <= set(tags["histograms"])
    assert {"config/text_summary", "custom_scalars__config__"} <= set(tags["tensors"])
    assert "_hparams_/session_start_info" in seen.summary_metadata
    losses = [event.value for event in seen.Scalars("loss/total")]
    assert losses[-1] < losses[0]


def test_fit_ends_with_a_table_the_folder_and_the_command(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*FIT, *SMALL]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-1].endswith("tensorboard --logdir lightning_logs")
    assert lines[-2].endswith("lightning_logs/version_1")
    assert any("fraction of variance unexplained" in line for line in lines)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_measuring_a_checkpoint_gives_what_the_fit_ended_with(
    command: str, fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = fitted.parents[2]
    # The width and k of the dictionary come from the checkpoint.
    monkeypatch.setenv("RUNS", str(runs))
    assert main([command, *DATA, "--ckpt_path=$RUNS/version_0/checkpoints/last.ckpt"]) == 0
    split = "val" if command == "validate" else "test"
    (measured,) = events(runs / "version_1").Scalars(f"{split}/fvu")
    expected = events(runs / "version_0").Scalars("val/fvu")[-1].value
    assert measured.value == pytest.approx(expected, rel=1e-6)


def test_the_command_line_wins_over_the_checkpoint_and_quiet_leaves_the_results(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.disable_progress_bar()  # as the environment has it where transformers is not loaded yet
    line = ["validate", "--model.autoencoder.k=9", "--ckpt_path=last", *DATA[:-1], "--quiet"]
    assert main(line) == 0
    logging.enable_progress_bar()
    quiet = capsys.readouterr()
    assert quiet.out.lstrip("\n").startswith("  fraction of variance unexplained")
    assert quiet.err == ""
    # Tied values could only add to the nine, and no token of ours has any.
    l0 = events(fitted.parents[2] / "version_1").Scalars("val/l0")[-1].value
    assert l0 == pytest.approx(9.0)


def test_predict_writes_the_latents(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *DATA, "--ckpt_path=last"]) == 0
    assert "latents in   lightning_logs/version_1/latents" in capsys.readouterr().out
    files = sorted((fitted.parents[2] / "version_1/latents").iterdir())
    batches = [load_file(file) for file in files]
    assert sum(int(batch["shape"][0]) for batch in batches) == 1024
    for batch in batches:
        assert int(batch["shape"][1]) == 640
        assert torch.bincount(batch["token"]).max() == 16
        assert (batch["value"] > 0).all()


def test_harvest_fills_the_cache_and_writes_no_logs(workspace: Path) -> None:
    assert main(["harvest", *DATA]) == 0
    assert len([path for path in (workspace / "cache").iterdir() if path.is_dir()]) == 2
    assert not (workspace / "lightning_logs").exists()


def test_the_printed_configuration_states_the_optimizer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--print_config"])
    assert stopped.value.code == 0
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["optimizer"]["class_path"] == "torch.optim.Adam"
    assert config["model"]["optimizer"]["init_args"]["lr"] == 1e-4
    assert config["data"]["language_model"] == "mini"


Refusal = Callable[..., str]


@pytest.fixture
def refusal(workspace: Path, refused: Refusal) -> Refusal:
    """Runs a command that is refused and leaves no file behind; gives the line that says so."""

    def run(*arguments: str, while_fitting: bool = False) -> str:
        before = left_behind(workspace)
        line = refused(*arguments)
        assert while_fitting or left_behind(workspace) == before
        return line

    return run


def left_behind(folder: Path) -> list[str]:
    """Every file and folder below a folder, but for caches."""
    paths = [path for path in folder.rglob("*") if "cache" not in path.parts]
    return sorted(str(path.relative_to(folder)) for path in paths)


ONE_CYCLE = "--model.lr_scheduler=OneCycleLR --model.lr_scheduler.max_lr=0.1"
TEXT = "--data.corpus=TextFiles --data.corpus.path"
MODEL = "--data.language_model.name=mini --data.language_model"
GPU = pytest.mark.skipif(torch.accelerator.is_available(), reason="there is one")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--data.site=blocks.3.mlp.prr", ["blocks.3.mlp.prr", "blocks.3.mlp.pre", "hidden"]),
        ("--data.site=blocks.17.mlp.pre", ["blocks.17.mlp.pre", "6"]),
        ("--model.autoencoder.k=0", ["k", "at least 1", "0"]),
        ("--model.autoencoder.k=5000", ["k", "at most latent_dim", "5000"]),
        (f"{TEXT}=nowhere", ["nowhere"]),
        (f"{TEXT}=empty", ["empty"]),
        (f"{TEXT}=short.txt", ["5 tokens", "128"]),
        (f"{TEXT}=single.txt", ["validation", "1"]),
        ("--data.corpus=Passage --data.corpus.text=", ["passage is empty"]),
        ("--data.language_model=no/such-model", ["no/such-model"]),
        (f"{MODEL}.dtype=float8", ["float8"]),
        (f"{MODEL}.device=warp", ["warp"]),
        ("--data.validation_fraction=1.5", ["validation_fraction", "1.5"]),
        ("--data.cache_dir=short.txt/below", ["short.txt"]),
        ("--data.target_site=blocks.3.mlp.out", ["set tied to false"]),
        ("--model.optimizer.lr=-1", ["Invalid learning rate: -1.0", "model.optimizer"]),
        (ONE_CYCLE, ["total_steps", "model.lr_scheduler"]),
        ("--trainer.accelerator=tpu", ["accelerator tpu", "torch_xla", "`auto`"]),
        pytest.param("--trainer.accelerator=gpu", ["accelerator gpu", "`auto`"], marks=GPU),
        ("--trainer.default_root_dir=short.txt", ["short.txt"]),
        ("--ckpt_path=short.txt", ["short.txt", "checkpoint"]),
    ],
)
def test_options_that_cannot_work(
    options: str, expected: list[str], workspace: Path, refusal: Refusal
) -> None:
    (workspace / "empty").mkdir()
    (workspace / "short.txt").write_text("Too short.")
    (workspace / "single.txt").write_text("One document, and long enough. " * 500)
    line = refusal(*FIT, "--data.validation_fraction=0.1", *options.split())
    for part in expected:
        assert part in line
    assert not (workspace / "cache").exists()


def test_what_only_the_fit_can_find_out(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [*ONE_CYCLE.split(), "--model.lr_scheduler.total_steps"]
    line = refusal(*FIT, *steps[:-1], f"{steps[-1]}=7", while_fitting=True)
    assert "OneCycleLR ends after 7 optimizer steps, and the run takes 8: give" in line
    assert main([*FIT, *steps[:-1], f"{steps[-1]}=8"]) == 0
    assert "1000000" in refusal(*FIT, "--data.batch_size=1000000", while_fitting=True)

    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "version_0")

    monkeypatch.setattr(TensorBoardLogger, "log_hyperparams", full)
    line = refusal(*FIT, while_fitting=True)
    assert line.startswith("version_0: No space left on device; ")


@pytest.mark.parametrize("command", ["fit", "harvest"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_activations_that_are_no_numbers(
    command: str, in_memory: bool, workspace: Path, refusal: Refusal
) -> None:
    folder = workspace / "broken"
    shutil.copytree(mini_gpt2_folder(), folder)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.3.mlp.c_fc.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    line = refusal(
        command, *DATA, "--data.language_model=./broken", f"--data.in_memory={in_memory}"
    )
    assert ("in_memory" if in_memory and command == "harvest" else "NaN") in line
    assert not list(workspace.rglob("manifest.json"))


def test_a_damaged_cache_is_named(fitted: Path, workspace: Path, refusal: Refusal) -> None:
    shard = max((workspace / "cache").rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    manifest = shard.with_name("manifest.json")
    whole, text = shard.read_bytes(), manifest.read_text()

    shard.write_bytes(whole[:-1])
    assert shard.name in refusal(*FIT)
    shard.unlink()
    line = refusal(*FIT)
    assert shard.name in line
    assert "harvest again" in line
    shard.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
    for command in ("fit", "harvest", "verify"):
        line = refusal(command, *DATA)
        assert shard.name in line
        assert "checksum" in line
    shard.write_bytes(whole)

    manifest.write_text(text[: len(text) // 2])
    assert "manifest.json" in refusal(*FIT)
    manifest.write_text(json.dumps(json.loads(text) | {"version": 99}))
    assert "99" in refusal(*FIT)
    manifest.write_text(text)
    assert main(FIT) == 0


def test_verify_reads_the_caches_of_a_configuration(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *DATA]) == 0
    assert capsys.readouterr().out.count("all as written") == 2


def test_a_checkpoint_of_another_model_or_width_or_cache_or_torn(
    fitted: Path, workspace: Path, refusal: Refusal
) -> None:
    caches = sorted((workspace / "cache").iterdir())
    torn = workspace / "torn.ckpt"
    torn.write_bytes(fitted.read_bytes()[:5000])
    resume = f"--ckpt_path={fitted}"
    for line, expected in (
        (["validate", *DATA, "--data.site=hidden.2", resume], ["512", "128"]),
        (
            ["validate", *DATA, "--data.site=blocks.1.mlp.pre", resume],
            ["blocks.3.mlp.pre", "blocks.1.mlp.pre"],
        ),
        ([*FIT, "--data.seed=7", "--trainer.max_epochs=3", resume], ["cache"]),
        (["validate", *DATA, f"--ckpt_path={torn}"], ["torn.ckpt"]),
        *(([name, *DATA], ["give --ckpt_path"]) for name in ("validate", "test", "predict")),
    ):
        answer = refusal(*line)
        for part in expected:
            assert part in answer
    assert sorted((workspace / "cache").iterdir()) == caches  # none of what was not wanted


@pytest.fixture(scope="module")
def transcoder(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[list[str]]:
    """The options of a transcoder that has been trained in the working folder."""
    folder = tmp_path_factory.mktemp("run")
    config = str(repository / "configs/architectures/transcoder.yaml")
    small = ["--config", config, *DATA, "--model.autoencoder.latent_dim=256"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALINKA_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main(["fit", *small, "--trainer.max_epochs=1"]) == 0
        yield [*small, f"--ckpt_path={LAST}"]


def test_a_transcoder_has_the_widths_and_scalings_of_both_sites(transcoder: list[str]) -> None:
    module = SparseAutoencoderModule.load_from_checkpoint(LAST)
    assert module.autoencoder.is_transcoder
    assert (module.autoencoder.input_dim, module.autoencoder.output_dim) == (128, 128)
    assert module.target_scaling is not None
    assert module.target_scaling.scale != module.scaling.scale
    text = Path("lightning_logs/version_0/config.yaml").read_text()
    assert "target_site: blocks.3.mlp.out" in text
    assert "output_dim" not in text
    encoder = encoder_from_checkpoint(LAST)
    assert (encoder.site, encoder.width) == ("transformer.h.3.ln_2", 128)
    assert encoder.encode(torch.randn(2, 128)).shape == (2, 256)


def test_a_transcoder_is_measured_and_gives_latents(
    transcoder: list[str], refused: Refusal
) -> None:
    assert main(["validate", *transcoder, "--trainer.logger=false"]) == 0
    assert main(["predict", *transcoder]) == 0
    (file, *_) = sorted(Path().glob("lightning_logs/*/latents/*.safetensors"))
    assert load_file(file)["shape"].tolist() == [256, 256]
    assert "output_dim 128" in refused("validate", *transcoder, "--data.target_site=null")


@pytest.mark.slow
@pytest.mark.usefixtures("transcoder")
def test_a_transcoders_latents_are_reported_as_what_they_write() -> None:
    data = ActivationDataModule.load_from_checkpoint(LAST)
    data.setup("")
    module = SparseAutoencoderModule.load_from_checkpoint(LAST)
    report = ReportLatents(contexts=2).report(data, module)
    assert report.statistics.density.shape == (256,)
    assert report.effects  # the MLP's output adds to the residual stream
