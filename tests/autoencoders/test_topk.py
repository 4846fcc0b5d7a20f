from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import palinka
from palinka.autoencoders import Autoencoder, TopKAutoencoder
from palinka.errors import InputError


def transcription(sae: TopKAutoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's equations, one row at a time; ties are all kept."""
    latents = []
    for row in x:
        a = (sae.encoder.weight @ (row - sae.decoder_bias) + sae.encoder.bias).relu()
        smallest = sorted(a.tolist(), reverse=True)[sae.k - 1]
        latents.append(torch.stack([v if v.item() >= smallest else 0.0 * v for v in a]))
    z = torch.stack(latents)
    return z, z @ sae.decoder_weight + sae.decoder_bias


def perturbed(sae: Autoencoder) -> Autoencoder:
    """The same with biases that are not zero, and an encoder of its own."""
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return sae


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 1000), st.data())
def test_it_is_the_paper(d: int, latents: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, latents))
    torch.manual_seed(seed)
    sae = perturbed(TopKAutoencoder(d, latents, k).double())
    x = torch.randn(5, d, dtype=torch.float64)
    z, reconstruction = transcription(sae, x)
    output = sae(x)
    torch.testing.assert_close(output.latents, z)
    torch.testing.assert_close(output.reconstruction, reconstruction)


def test_gradients() -> None:
    torch.manual_seed(0)
    sae = perturbed(TopKAutoencoder(3, 5, 2).double())
    names = [name for name, _ in sae.named_parameters()]
    x = torch.randn(4, 3, dtype=torch.float64)

    def reconstruction(*parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(sae, given, (x,)).reconstruction

    assert torch.autograd.gradcheck(reconstruction, tuple(sae.parameters()))


def test_at_the_start_the_encoder_is_the_decoder_of_norm_one() -> None:
    sae = TopKAutoencoder(6)
    assert (sae.latent_dim, sae.k, sae.unit_norm) == (12, 3, True)
    assert torch.equal(sae.encoder.weight, sae.decoder_weight)
    torch.testing.assert_close(sae.dictionary.norm(dim=1), torch.ones(12))
    assert not sae.encoder.bias.any()
    assert not sae.decoder_bias.any()


def test_it_begins_at_the_geometric_median() -> None:
    rows = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 900.0]])
    sae = TopKAutoencoder(2)
    sae.initialize(rows)
    assert 1.9 < sae.decoder_bias[1] < 3.1
    assert sae.decoder_bias.requires_grad


def test_it_is_new_until_weights_are_loaded(tmp_path: Path) -> None:
    sae = perturbed(palinka.TopKAutoencoder(4, 7, 2, subtract_decoder_bias=False))
    assert sae.is_new
    sae.save_pretrained(tmp_path)
    again = Autoencoder.from_pretrained(tmp_path)
    assert type(again) is TopKAutoencoder
    assert again.config() == sae.config()
    assert not again.is_new
    assert not again.training
    x = torch.randn(3, 4)
    assert torch.equal(again(x).reconstruction, sae(x).reconstruction)


@pytest.mark.parametrize("k", [0, 13, True, 2.0])
def test_a_k_that_cannot_be(k: int) -> None:
    with pytest.raises(InputError, match=r"k must be .*got") as refused:
        TopKAutoencoder(6, k=k)
    assert "\n" not in str(refused.value)
