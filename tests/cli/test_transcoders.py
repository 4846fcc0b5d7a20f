"""A transcoder from the command line: trained, measured and read like any autoencoder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from palinka.__main__ import main
from palinka.cli.analyze import encoder_from_checkpoint
from palinka.data import ActivationDataModule
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks import ReportLatents

SMALL = [
    "--data.train_tokens=1024",
    "--data.validation_tokens=512",
    "--data.context_length=64",
    "--data.batch_size=256",
    "--model.autoencoder.latent_dim=256",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]
LAST = "lightning_logs/version_0/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def config(repository: Path) -> Path:
    return repository / "configs" / "architectures" / "transcoder.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALINKA_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main(["fit", "--config", str(config), *SMALL]) == 0
        yield folder


def test_its_widths_and_scalings_are_those_of_both_sites(trained: Path) -> None:
    module = SparseAutoencoderModule.load_from_checkpoint(trained / LAST)
    assert module.autoencoder.is_transcoder
    assert (module.autoencoder.input_dim, module.autoencoder.output_dim) == (128, 128)
    assert module.target_scaling is not None
    assert module.target_scaling.scale != module.scaling.scale
    text = (trained / "lightning_logs/version_0/config.yaml").read_text()
    assert "target_site: blocks.3.mlp.out" in text
    assert "output_dim" not in text


def test_it_is_measured_and_gives_latents(trained: Path, config: Path) -> None:
    given = ["--config", str(config), *SMALL, "--ckpt_path", LAST]
    given.remove("--trainer.max_epochs=1")
    assert main(["validate", *given, "--trainer.logger=false"]) == 0
    assert main(["predict", *given]) == 0
    (file, *_) = sorted(trained.glob("lightning_logs/*/latents/*.safetensors"))
    assert load_file(file)["shape"].tolist() == [256, 256]


def test_its_latents_are_read_at_the_site_that_it_reads(trained: Path) -> None:
    encoder = encoder_from_checkpoint(trained / LAST)
    assert (encoder.site, encoder.width) == ("transformer.h.3.ln_2", 128)
    assert encoder.encode(torch.randn(2, 128)).shape == (2, 256)


@pytest.mark.slow
def test_its_latents_are_reported_as_what_they_write(trained: Path) -> None:
    module = SparseAutoencoderModule.load_from_checkpoint(trained / LAST)
    data = ActivationDataModule.load_from_checkpoint(trained / LAST)
    data.setup("")
    report = ReportLatents(contexts=2).report(data, module)
    assert report.statistics.density.shape == (256,)
    assert report.effects  # the MLP's output adds to the residual stream


@pytest.mark.slow
def test_a_checkpoint_of_one_is_refused_for_data_of_one_site(
    trained: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config", str(config), *SMALL, "--ckpt_path", LAST, "--data.target_site=null"]
    given.remove("--trainer.max_epochs=1")
    assert main(["validate", *given, "--trainer.logger=false"]) != 0
    assert "128 inputs, 128 outputs and 256 latents" in capsys.readouterr().err


@pytest.mark.slow
def test_the_default_autoencoder_is_tied_and_says_so(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *SMALL, "--data.target_site=blocks.3.mlp.out"]) != 0
    assert "set tied to false" in capsys.readouterr().err
