"""The module under LightningCLI, which captures hyper-parameters in a way of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch.utils.data import DataLoader

from palinka.training import SparseAutoencoderModule


class Data(LightningDataModule):
    """Knows its width only once it has been made, as the project's own does."""

    width = 8

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.randn(3, 6, 8), batch_size=None)

    val_dataloader = train_dataloader


class CLI(LightningCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments(
            "data.width", "model.autoencoder.init_args.input_dim", apply_on="instantiate"
        )


def cli(folder: Path, *arguments: str, **options: Any) -> LightningCLI:
    return CLI(
        SparseAutoencoderModule,
        Data,
        auto_configure_optimizers=False,
        save_config_callback=None,
        args=[
            "fit",
            "--model.autoencoder=KSparseAutoencoder",
            "--model.autoencoder.k=3",
            "--trainer.max_epochs=1",
            "--trainer.accelerator=cpu",
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_checkpointing=false",
            f"--trainer.default_root_dir={folder}",
            *arguments,
        ],
        **options,
    )


@pytest.mark.parametrize("load_from_checkpoint_support", [True, False])
def test_its_checkpoint_loads_without_arguments(
    tmp_path: Path, load_from_checkpoint_support: bool
) -> None:
    ran = cli(
        tmp_path,
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.lr=0.5",
        "--model.sparsity_weight=0.25",
        load_from_checkpoint_support=load_from_checkpoint_support,
    )
    assert isinstance(ran.trainer.optimizers[0], torch.optim.SGD)
    assert ran.trainer.optimizers[0].param_groups[0]["lr"] == 0.5
    path = tmp_path / "cli.ckpt"
    ran.trainer.save_checkpoint(path)
    torch.load(path, weights_only=True)
    module = SparseAutoencoderModule.load_from_checkpoint(path)
    assert module.autoencoder.config() == ran.model.autoencoder.config()
    assert (module.autoencoder.input_dim, module.autoencoder.k) == (8, 3)
    assert module.objective.sparsity_weight == 0.25
    torch.testing.assert_close(module.state_dict(), ran.model.state_dict(), rtol=0, atol=0)


def test_the_printed_configuration_states_the_optimizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli(tmp_path, "--print_config")
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    assert model["optimizer"]["class_path"] == "torch.optim.Adam"
    assert model["optimizer"]["init_args"]["lr"] == 1e-4
    assert model["optimizer"]["init_args"]["betas"] == [0.9, 0.999]
    assert model["lr_scheduler"] is None
    assert model["decorrelation_weight"] == 5e-4
