"""The commands as a user types them, on the bundled model, in process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.utils import logging

from palinka.__main__ import main
from palinka.training import SparseAutoencoderModule

SMALL = [
    "--data.train_tokens=8192",
    "--data.validation_tokens=2048",
    "--data.batch_size=512",
    "--model.autoencoder.latent_dim=640",
    "--model.autoencoder.k=16",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=4",
    "--trainer.enable_progress_bar=false",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder in which one small fit has run."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALINKA_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main(["fit", *SMALL, "--trainer.max_epochs=2"]) == 0
        yield folder


@pytest.fixture
def checkpoint(trained: Path) -> Path:
    return trained / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def test_fit_leaves_a_checkpoint_a_config_and_events(trained: Path, checkpoint: Path) -> None:
    assert checkpoint.is_file()
    config = yaml.safe_load((trained / "lightning_logs/version_0/config.yaml").read_text())
    assert config["model"]["autoencoder"]["init_args"]["k"] == 16
    assert "input_dim" not in config["model"]["autoencoder"]["init_args"]
    module = SparseAutoencoderModule.load_from_checkpoint(checkpoint)
    assert module.autoencoder.input_dim == 512
    assert module.autoencoder.latent_dim == 640


def test_tensorboard_has_the_groups_the_layout_the_histograms_and_the_config(
    trained: Path,
) -> None:
    seen = events(trained / "lightning_logs/version_0")
    scalars = set(seen.Tags()["scalars"])
    assert {
        "loss/total",
        "loss/reconstruction",
        "loss/sparsity",
        "loss/decorrelation",
        "reconstruction/fvu",
        "sparsity/l0",
        "sparsity/dead",
        "val/fvu",
        "val/l0",
        "val/dead",
        "throughput/tokens_per_second",
        "throughput/loader_wait",
        "final/fvu",
    } <= scalars
    assert {"latents/log10_firing_frequency", "latents/nearest_cosine"} <= set(
        seen.Tags()["histograms"]
    )
    tensors = set(seen.Tags()["tensors"])
    assert "config/text_summary" in tensors
    assert "custom_scalars__config__" in tensors
    assert "_hparams_/session_start_info" in seen.summary_metadata
    losses = [event.value for event in seen.Scalars("loss/total")]
    assert losses[-1] < losses[0]


def test_fit_ends_with_a_table_the_folder_and_the_command(
    workspace: Path, trained: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PALINKA_CACHE", str(trained / "cache"))
    assert main(["fit", *SMALL, "--trainer.max_epochs=1"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-1].endswith("tensorboard --logdir lightning_logs")
    assert lines[-2].endswith("lightning_logs/version_0")
    assert any("fraction of variance unexplained" in line for line in lines)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_measuring_a_checkpoint_gives_what_the_fit_ended_with(
    command: str, trained: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    fitted = events(trained / "lightning_logs/version_0").Scalars("val/fvu")[-1].value
    before = set((trained / "lightning_logs").iterdir())
    # The width and k of the dictionary come from the checkpoint.
    small = [option for option in SMALL if not option.startswith("--model")]
    assert main([command, *small, f"--ckpt_path={checkpoint}"]) == 0
    (folder,) = set((trained / "lightning_logs").iterdir()) - before
    name = "val/fvu" if command == "validate" else "test/fvu"
    assert events(folder).Scalars(name)[-1].value == pytest.approx(fitted, rel=1e-6)


def test_quiet_leaves_the_results_and_nothing_else(
    trained: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.disable_progress_bar()  # as the environment has it where transformers is not loaded yet
    line = [
        "validate",
        *SMALL[:-1],
        f"--ckpt_path={checkpoint}",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    assert main([*line, "--quiet"]) == 0
    logging.enable_progress_bar()
    quiet = capsys.readouterr()
    assert quiet.out.lstrip("\n").startswith("  fraction of variance unexplained")
    assert quiet.err == ""


def test_the_command_line_wins_over_the_checkpoint(
    trained: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    before = set((trained / "lightning_logs").iterdir())
    small = [option for option in SMALL if not option.startswith("--model")]
    nine = ["--model.autoencoder.k=9", f"--ckpt_path={checkpoint}"]
    assert main(["validate", *nine, *small]) == 0
    (folder,) = set((trained / "lightning_logs").iterdir()) - before
    # Tied values could only add to the nine, and no token of ours has any.
    assert events(folder).Scalars("val/l0")[-1].value == pytest.approx(9.0)


def test_predict_writes_the_latents(
    trained: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    before = set((trained / "lightning_logs").iterdir())
    small = [option for option in SMALL if not option.startswith("--model")]
    assert main(["predict", *small, f"--ckpt_path={checkpoint}"]) == 0
    (folder,) = set((trained / "lightning_logs").iterdir()) - before
    assert f"latents in   lightning_logs/{folder.name}/latents" in capsys.readouterr().out
    files = sorted((folder / "latents").iterdir())
    batches = [load_file(file) for file in files]
    assert sum(int(batch["shape"][0]) for batch in batches) == 2048
    for batch in batches:
        assert int(batch["shape"][1]) == 640
        assert torch.bincount(batch["token"]).max() == 16
        assert (batch["value"] > 0).all()


def test_harvest_fills_the_cache_and_writes_no_logs(workspace: Path) -> None:
    assert main(["harvest", *SMALL]) == 0
    caches = [path for path in (workspace / "cache").iterdir() if path.is_dir()]
    assert len(caches) == 2
    assert not (workspace / "lightning_logs").exists()


def test_the_printed_configuration_states_the_optimizer(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--print_config"])
    assert stopped.value.code == 0
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["optimizer"]["class_path"] == "torch.optim.Adam"
    assert config["model"]["optimizer"]["init_args"]["lr"] == 1e-4
    assert config["data"]["language_model"] == "mini"


def test_verify_reads_the_caches_of_a_configuration(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PALINKA_CACHE", str(trained / "cache"))
    before = set((trained / "lightning_logs").iterdir())
    assert main(["verify", *SMALL]) == 0
    assert capsys.readouterr().out.count("all as written") == 2
    shard = max((trained / "cache").rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert main(["verify", *SMALL]) == 2
    assert shard.name in capsys.readouterr().err
    content[-1] ^= 1
    shard.write_bytes(content)
    assert set((trained / "lightning_logs").iterdir()) == before
