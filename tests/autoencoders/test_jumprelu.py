from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.autoencoders import Autoencoder, JumpReLUAutoencoder
from palinka.errors import InputError


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 1000))
def test_latents_are_the_papers(input_dim: int, latent_dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    sae = JumpReLUAutoencoder(input_dim, latent_dim).double()
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, input_dim, dtype=torch.float64)
    a = (x - sae.decoder_bias) @ sae.encoder.weight.T + sae.encoder.bias
    expected = torch.where(a > torch.exp(sae.log_threshold), a, 0.0)
    torch.testing.assert_close(sae.encode(x), expected)
    reconstruction = expected @ sae.decoder_weight + sae.decoder_bias
    torch.testing.assert_close(sae(x).reconstruction, reconstruction)


def test_every_threshold_begins_as_asked_and_stays_positive() -> None:
    sae = JumpReLUAutoencoder(4, first_threshold=0.25)
    torch.testing.assert_close(sae.threshold, torch.full((8,), 0.25))
    sae.log_threshold.data.fill_(-50.0)
    assert (sae.threshold > 0).all()


def test_every_setting_is_saved(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "input_dim": 4,
        "latent_dim": 6,
        "bandwidth": 0.5,
        "first_threshold": 0.25,
        "sparsity": "tanh",
        "tanh_scale": 2.0,
        "subtract_decoder_bias": False,
        "unit_norm": False,
    }
    sae = JumpReLUAutoencoder(**asked)
    assert sae.config() == asked
    sae.save_pretrained(tmp_path)
    assert Autoencoder.from_pretrained(tmp_path).config() == asked


@pytest.mark.parametrize("name", ["bandwidth", "first_threshold", "tanh_scale"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1", True, None])
def test_what_is_not_a_positive_number_is_named(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{name} must be a positive number, got"):
        JumpReLUAutoencoder(4, **{name: value})


def test_another_sparsity_is_named() -> None:
    with pytest.raises(InputError, match="sparsity must be 'l0' or 'tanh', got 'l1'"):
        JumpReLUAutoencoder(4, sparsity="l1")  # type: ignore[arg-type]
