import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palinka.autoencoders import KSparseAutoencoder
from palinka.errors import InputError


def transcription(weight: Tensor, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The spec's page: latents and reconstruction of rows `x`."""
    a = torch.relu(x @ weight.T)
    threshold = a.sort(dim=-1, descending=True).values[:, k - 1, None]
    z = a * (a >= threshold)
    return z, z @ weight


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.data())
def test_the_default_is_the_spec(input_dim: int, latent_dim: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, latent_dim))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    sae = KSparseAutoencoder(input_dim, latent_dim, k).double()
    x = torch.randn(5, input_dim, dtype=torch.float64)
    x[2] = 0.0
    latents, reconstruction = transcription(sae.encoder.weight, x, k)
    output = sae(x)
    torch.testing.assert_close(output.latents, latents)
    torch.testing.assert_close(output.reconstruction, reconstruction)


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
        ({"k": True}, "k must be an integer"),
        ({"output_dim": 4}, "set tied to false"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        KSparseAutoencoder(**{"input_dim": 8, **arguments})
