"""The commands as a user types them, on the bundled model, in process.

What cannot work is refused in one line, with status 2, and leaves nothing behind.
"""

import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from transformers.utils import logging

from palinka.__main__ import main
from palinka.assets import mini_gpt2_folder
from palinka.cli.resume import load_module
from palinka.data import ActivationDataModule
from palinka.training import SparseAutoencoderModule, checkpoint
from palinka.training.callbacks import ReportLatents
from palinka.training.callbacks.run_analyses import encoder_of

DATA = [
    "--data.train_tokens=2048", "--data.validation_tokens=1024", "--data.batch_size=256",
    "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=4",
    "--trainer.enable_progress_bar=false",
]  # fmt: skip
SMALL = ["--model.autoencoder.latent_dim=640", "--model.autoencoder.k=16"]
FIT = ["fit", *DATA, *SMALL, "--trainer.max_epochs=1"]
LAST = "lightning_logs/version_0/checkpoints/last.ckpt"
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def trained(run_once: Callable[..., Path]) -> Path:
    return run_once([*FIT, "--trainer.max_epochs=2"])


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
        "throughput/tokens_per_second", "throughput/loader_wait",
        "latents/log10_firing_frequency", "latents/nearest_cosine", "config/text_summary",
        "custom_scalars__config__",
    } <= {*tags["scalars"], *tags["histograms"], *tags["tensors"]}  # fmt: skip
    # The HPARAMS page compares the last points of these curves, without curves of its own.
    described = seen.summary_metadata["_hparams_/experiment"].plugin_data.content
    found = HParamsPluginData.FromString(described).experiment.metric_infos
    assert {"val/fvu", "val/l0"} <= {info.name.tag for info in found} <= set(tags["scalars"])
    assert config["model"]["sparsity_weight"] == 1.0
    losses = [event.value for event in seen.Scalars("loss/total")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("command", ["validate", "test"])
def test_measuring_a_checkpoint_gives_what_the_fit_ended_with(
    command: str, fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = fitted.parents[2]
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
    assert quiet.out.lstrip("\n").startswith("  variance unexplained (FVU)")
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


def test_harvest_fills_the_cache_and_writes_no_logs(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["harvest", *DATA]) == 0
    train, validation = capsys.readouterr().out.splitlines()
    rows = r"train activations: [\d,]+ rows of 512 float16, [\d.]+MB, [\d,]+ tokens per second, in"
    assert re.match(rows, train)
    assert Path(validation.split()[-1]).parent == workspace / "cache"
    assert len([path for path in (workspace / "cache").iterdir() if path.is_dir()]) == 2
    assert not (workspace / "lightning_logs").exists()


ONE_CYCLE = "--model.lr_scheduler=OneCycleLR --model.lr_scheduler.max_lr=0.1"
TEXT = "--data.corpus=TextFiles --data.corpus.path"
GPU = pytest.mark.skipif(torch.accelerator.is_available(), reason="there is one")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--model.autoencoder.k=5000", ["k", "at most latent_dim", "5000"]),
        (f"{TEXT}=single.txt", ["validation", "1"]),
        ("--model.optimizer.lr=-1", ["Invalid learning rate: -1.0", "model.optimizer"]),
        (ONE_CYCLE, ["total_steps", "model.lr_scheduler"]),
        ("--trainer.accelerator=tpu", ["accelerator tpu", "torch_xla", "`auto`"]),
        pytest.param("--trainer.accelerator=gpu", ["accelerator gpu", "`auto`"], marks=GPU),
        ("--trainer.default_root_dir=short.txt", ["short.txt"]),
        ("--ckpt_path=short.txt", ["short.txt", "checkpoint"]),
    ],
)
def test_options_that_cannot_work(
    options: str, expected: list[str], workspace: Path, refused: Refused
) -> None:
    (workspace / "short.txt").write_text("Too short.")
    (workspace / "single.txt").write_text("One document, and long enough. " * 500)
    line = refused(*FIT, "--data.validation_fraction=0.1", *options.split())
    assert all(part in line for part in expected), line
    assert {path.name for path in workspace.iterdir()} == {"short.txt", "single.txt"}


def test_what_only_the_fit_can_find_out(
    workspace: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = [*FIT, *ONE_CYCLE.split()]
    line = refused(*schedule, "--model.lr_scheduler.total_steps=7")
    assert "the schedule ends after 7 of 8 steps: give" in line
    assert main([*schedule, "--model.lr_scheduler.total_steps=8"]) == 0
    assert "1000000" in refused(*FIT, "--data.batch_size=1000000")

    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "version_0")

    monkeypatch.setattr(TensorBoardLogger, "log_hyperparams", full)
    line = refused(*FIT)
    assert line.startswith("version_0: No space left on device; ")


def test_activations_that_are_no_numbers(workspace: Path, refused: Refused) -> None:
    folder = workspace / "broken"
    shutil.copytree(mini_gpt2_folder(), folder)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.3.mlp.c_fc.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    broken = ["--data.language_model=./broken", "--data.in_memory=true"]
    assert "NaN" in refused("fit", *DATA, *broken)


def test_a_damaged_cache_is_named(
    fitted: Path, workspace: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = max((workspace / "cache").rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    whole = shard.read_bytes()
    shard.unlink()
    line = refused(*FIT)
    assert shard.name in line
    assert "harvest again" in line
    shard.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
    for command in ("fit", "harvest", "verify"):
        line = refused(command, *DATA)
        assert shard.name in line
        assert "checksum" in line
    shard.write_bytes(whole)
    capsys.readouterr()
    assert main(["verify", *DATA]) == 0
    assert capsys.readouterr().out.count("all as written") == 2


def test_a_checkpoint_of_another_site_or_none(
    fitted: Path, workspace: Path, refused: Refused
) -> None:
    caches = sorted((workspace / "cache").iterdir())
    line = refused("validate", *DATA, "--data.site=blocks.1.mlp.pre", f"--ckpt_path={fitted}")
    assert "trained with site blocks.3.mlp.pre" in line
    assert "blocks.1.mlp.pre" in line
    assert "give --ckpt_path" in refused("test", *DATA)
    assert sorted((workspace / "cache").iterdir()) == caches  # none of what was not wanted


def test_a_transcoder_has_both_sites_and_is_measured_and_gives_latents(
    workspace: Path, refused: Refused
) -> None:
    transcoder = ["--config=transcoder", *DATA, "--model.autoencoder.latent_dim=256"]
    assert main(["fit", *transcoder, "--trainer.max_epochs=1"]) == 0
    transcoder += [f"--ckpt_path={LAST}"]
    module = SparseAutoencoderModule.load_from_checkpoint(LAST)
    assert module.autoencoder.is_transcoder
    assert (module.autoencoder.input_dim, module.autoencoder.output_dim) == (128, 128)
    assert module.target_scaling is not None
    assert module.target_scaling.scale != module.scaling.scale
    text = Path("lightning_logs/version_0/config.yaml").read_text()
    assert "target_site: blocks.3.mlp.out" in text
    assert "output_dim" not in text
    encoder = encoder_of(load_module(Path(LAST)), checkpoint.read(LAST)["source"])
    assert (encoder.site, encoder.width) == ("transformer.h.3.ln_2", 128)
    assert encoder.encode(torch.randn(2, 128)).shape == (2, 256)
    assert main(["validate", *transcoder, "--trainer.logger=false"]) == 0
    assert main(["predict", *transcoder]) == 0
    file = min(workspace.rglob("latents/*.safetensors"))
    assert load_file(file)["shape"].tolist() == [256, 256]
    assert "output_dim 128" in refused("validate", *transcoder, "--data.target_site=null")

    data = ActivationDataModule.load_from_checkpoint(LAST)
    data.setup("")
    report = ReportLatents(contexts=2).report(data, module)
    assert report.statistics.density.shape == (256,)
    assert report.effects  # the MLP's output adds to the residual stream
