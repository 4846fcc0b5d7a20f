from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from palinka.atlas import WriteAtlas
from palinka.autoencoders import KSparseAutoencoder
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule, SweepModule


def test_a_sweep_has_no_atlas() -> None:
    one = SparseAutoencoderModule(KSparseAutoencoder(8, 4, k=2))
    sweep = SweepModule({"k=2": one}, {}, {"k=2": {"k": 2}})
    with pytest.raises(InputError, match="WriteAtlas takes a single autoencoder"):
        WriteAtlas().setup(Trainer(logger=False), sweep, "fit")


def test_a_folder_of_something_else_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="is not an atlas"):
        WriteAtlas(str(tmp_path))
