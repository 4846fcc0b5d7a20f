import math

import pytest
import torch

from palinka.autoencoders import KSparseAutoencoder
from palinka.errors import InputError


def test_what_is_left_out() -> None:
    sae = KSparseAutoencoder(input_dim=25)
    assert (sae.latent_dim, sae.k) == (50, 12)
    assert KSparseAutoencoder(input_dim=1).k == 1
    assert [(name, p.shape) for name, p in sae.named_parameters()] == [("encoder.weight", (50, 25))]
    untied = KSparseAutoencoder(5, tied=False, encoder_bias=True, decoder_bias=True, unit_norm=True)
    names = {"encoder.weight", "encoder.bias", "decoder_weight", "decoder_bias"}
    assert dict(untied.named_parameters()).keys() == names
    assert not untied.encoder.bias.any()
    for unit in (untied, KSparseAutoencoder(5, unit_norm=True)):
        torch.testing.assert_close(unit.dictionary.norm(dim=1), torch.ones(10))


def test_the_first_weights_are_uniform_in_one_over_root_d() -> None:
    torch.manual_seed(0)
    weight = KSparseAutoencoder(64, 4000).encoder.weight.detach() * 8.0
    assert -1.0 <= weight.min() < -0.999
    assert 0.999 < weight.max() <= 1.0
    assert weight.mean().abs() < 0.01
    assert weight.std() == pytest.approx(1 / math.sqrt(3), rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be an integer of at least 1, got 0"),
        ({"k": 17}, "k must be at most latent_dim, got k 17 and latent_dim 16"),
        ({"k": 2.5}, "k must be an integer"),
        ({"output_dim": 4}, "set tied to false"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        KSparseAutoencoder(**{"input_dim": 8, **arguments})
