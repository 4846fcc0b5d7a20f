from pathlib import Path

import numpy as np
import pytest
import torch

from palinka.atlas.against import compare, match, read_dictionary
from palinka.autoencoders import KSparseAutoencoder
from palinka.autoencoders.formats import Provenance, write
from palinka.data import ActivationDataModule
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule


def unit(directions: np.ndarray) -> np.ndarray:
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def test_a_permuted_dictionary_is_matched_latent_by_latent() -> None:
    random = np.random.default_rng(0)
    ours = random.standard_normal((40, 12)).astype(np.float32)
    order = random.permutation(40)
    theirs = 3.0 * ours[order] + 0.1 * random.standard_normal((40, 12)).astype(np.float32)
    theirs = np.concatenate([theirs, random.standard_normal((5, 12)).astype(np.float32)])
    cosines = unit(ours) @ unit(theirs).T
    found = match(ours, theirs, np.eye(12))
    here, there = found.pairs.T
    np.testing.assert_array_equal(order[there], here)
    np.testing.assert_allclose(found.cosines, -np.sort(-cosines[here, there]), rtol=1e-5)
    np.testing.assert_allclose(found.best[0], cosines.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.best[1], cosines.max(axis=0), rtol=1e-5)
    assert found.share == 40 / 42.5
    assert found.floor < found.threshold < 0.98


@pytest.mark.usefixtures("workspace")
def test_an_exported_dictionary_is_compared_and_one_of_another_site_rejected() -> None:
    torch.manual_seed(0)
    data = ActivationDataModule(context_length=32, train_tokens=64, validation_tokens=320)
    module = SparseAutoencoderModule(KSparseAutoencoder(data.width, 24, k=3))
    data.prepare_data()
    data.setup("")
    for site, folder in ((data.source["site"], "same"), ("blocks.2.mlp.pre", "far")):
        write(module.autoencoder, Provenance(site=str(site)), "palinka", Path(folder))
    found = compare(data, module, read_dictionary(Path("same"), module, data))
    assert found.name == "same"
    np.testing.assert_array_equal(found.matches.pairs[:, 0], found.matches.pairs[:, 1])
    np.testing.assert_allclose(found.matches.cosines, 1.0, rtol=1e-5)
    rows = data.validation_rows
    active = module.encode(rows.read_rows(0, rows.rows)) > 0
    np.testing.assert_allclose(found.density, 100 * active.float().mean(dim=0), rtol=1e-5)
    with pytest.raises(
        InputError, match=r"far has site blocks.2.mlp.pre, this dictionary blocks.3"
    ):
        read_dictionary(Path("far"), module, data)
    write(KSparseAutoencoder(128, 24, k=3), Provenance(), "palinka", Path("narrow"))
    with pytest.raises(InputError, match="narrow has input_dim 128, this dictionary 512"):
        read_dictionary(Path("narrow"), module, data)
