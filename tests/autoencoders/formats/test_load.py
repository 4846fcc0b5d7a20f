from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from palinka.autoencoders import (
    Autoencoder,
    InputScaling,
    KSparseAutoencoder,
    LayerNormalizedAutoencoder,
    MatryoshkaAutoencoder,
)
from palinka.autoencoders.formats import Provenance, fold, load, write
from palinka.autoencoders.formats.load import KINDS, to_table
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule

Agree = Callable[[Tensor, Tensor], None]


class Halving(KSparseAutoencoder):
    """May do more with activations than its parent."""


def test_it_does_with_raw_activations_what_the_other_did_with_scaled_ones(
    ours: Autoencoder, x: Tensor, scaling: InputScaling, agree: Agree
) -> None:
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    folded = fold(ours, scaling)
    assert type(folded) is type(ours)
    latents = ours.encode(scaling(x))
    agree(folded.encode(x), latents)
    agree(folded(x).reconstruction, scaling.inverse(ours.decode(latents)))
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


def test_centering_alone_leaves_it_tied(x: Tensor, agree: Agree) -> None:
    ours = KSparseAutoencoder(x.shape[1], unit_norm=True)
    scaling = InputScaling(x.shape[1])
    scaling.set(x.mean(dim=0), 1.0)
    folded = fold(ours, scaling)
    assert folded.config() == {**ours.config(), "decoder_bias": True}
    agree(folded(x).reconstruction, scaling.inverse(ours(scaling(x)).reconstruction))
    scaling.set(x.mean(dim=0), 2.0)
    assert not fold(ours, scaling).unit_norm


def test_nothing_to_fold_changes_nothing(ours: Autoencoder) -> None:
    folded = fold(ours, InputScaling(ours.input_dim))
    assert folded.config() == ours.config()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(folded.state_dict()[name], tensor)


def test_what_others_have_made_is_not_folded() -> None:
    scaling = InputScaling(4)
    assert type(fold(Halving(4), scaling)) is Halving
    scaling.set(torch.zeros(4), 2.0)
    with pytest.raises(InputError, match="weights of a Halving"):
        fold(Halving(4), scaling)


def test_a_module_saves_it_folded(
    ours: Autoencoder, scaling: InputScaling, x: Tensor, folder: Path, agree: Agree
) -> None:
    module = SparseAutoencoderModule(ours).eval()
    module.scaling.set(scaling.mean, float(scaling.scale))
    module.save_pretrained(folder)
    again = Autoencoder.from_pretrained(folder)
    agree(again.encode(x), module.encode(x))
    agree(again(x).reconstruction, module(x).reconstruction)


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("kind", [k for k in KINDS if k is not LayerNormalizedAutoencoder])
def test_the_scalings_of_both_sites_are_folded_into_a_transcoder(
    kind: Any, bare: bool, agree: Agree
) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {}
    if kind is KSparseAutoencoder:
        settings = {"tied": False, "encoder_bias": not bare, "decoder_bias": not bare}
    if kind is MatryoshkaAutoencoder:
        settings = {"group_fractions": [0.5, 0.5]}
    transcoder = kind(6, 20, output_dim=4, **settings).eval()
    with pytest.raises(InputError, match="palinka's own format only"):
        to_table(transcoder)
    scaling, target_scaling = InputScaling(6), InputScaling(4)
    scaling.set(torch.randn(6), 3.0)
    target_scaling.set(torch.randn(4), 0.5)
    folded = fold(transcoder, scaling, target_scaling)
    x = torch.randn(50, 6)
    expected, found = transcoder(scaling(x)), folded(x)
    agree(found.latents, expected.latents)
    agree(found.reconstruction, target_scaling.inverse(expected.reconstruction))


def test_provenance_comes_back_and_the_card_tells_of_ties(k_sparse: Any, folder: Path) -> None:
    provenance = Provenance("blocks.6.mlp.pre", hook="blocks.6.mlp.hook_pre", bos=False)
    for library, told in (("saelens", True), ("palinka", False)):
        write(k_sparse, provenance, library, folder / library)
        assert load(folder / library)[1] == provenance
        assert ("exactly k latents" in (folder / library / "README.md").read_text()) is told
