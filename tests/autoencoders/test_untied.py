from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from palinka.autoencoders import Autoencoder, GatedAutoencoder, JumpReLUAutoencoder, ReLUAutoencoder
from palinka.autoencoders.untied import UntiedAutoencoder
from palinka.errors import InputError

Make = Callable[..., UntiedAutoencoder]
CLASSES = pytest.mark.parametrize(
    "make", [ReLUAutoencoder, GatedAutoencoder, JumpReLUAutoencoder], ids=lambda c: c.__name__
)


@CLASSES
def test_the_encoder_begins_as_a_copy_of_random_directions(make: Make) -> None:
    torch.manual_seed(0)
    sae = make(64, 3000, unit_norm=True)
    assert torch.equal(sae.encoder.weight, sae.decoder_weight)
    assert sae.encoder.weight.data_ptr() != sae.decoder_weight.data_ptr()
    torch.testing.assert_close(sae.dictionary.norm(dim=1), torch.ones(3000))
    # Uniform on the sphere: no direction is preferred.
    covariance = sae.dictionary.detach().T @ sae.dictionary.detach() / 3000
    torch.testing.assert_close(covariance, torch.eye(64) / 64, atol=0.002, rtol=0)
    assert all(not p.any() for name, p in sae.named_parameters() if "bias" in name)


@CLASSES
def test_the_names_and_shapes_of_parameters(make: Make) -> None:
    sae = make(5)
    shapes = {name: tuple(p.shape) for name, p in sae.named_parameters()}
    common = {"encoder.weight": (10, 5), "decoder_weight": (10, 5), "decoder_bias": (5,)}
    own = {
        "ReLUAutoencoder": ["encoder.bias"],
        "GatedAutoencoder": ["gate_bias", "magnitude_bias", "log_magnitude"],
        "JumpReLUAutoencoder": ["encoder.bias", "log_threshold"],
    }
    assert shapes == {**common, **dict.fromkeys(own[type(sae).__name__], (10,))}
    assert not sae.state_dict().keys() - shapes.keys()


@CLASSES
def test_the_decoder_bias_is_added_and_where_asked_subtracted(make: Make) -> None:
    torch.manual_seed(0)
    for subtract in (True, False):
        sae = make(4, 9, subtract_decoder_bias=subtract)
        for parameter in sae.parameters():
            torch.nn.init.normal_(parameter)
        bias = sae.decoder_bias.detach().clone()
        x, z = torch.randn(7, 4), torch.randn(7, 9)
        torch.testing.assert_close(sae.decode(z), z @ sae.decoder_weight + bias)
        latents = sae.encode(x)
        assert (latents > 0).any()
        sae.decoder_bias.data.zero_()
        torch.testing.assert_close(sae.encode(x - bias if subtract else x), latents)


@CLASSES
def test_leading_dimensions_are_kept(make: Make) -> None:
    sae = make(6, 10)
    x = torch.randn(2, 3, 6)
    assert sae.encode(x).shape == (2, 3, 10)
    assert sae(x).reconstruction.shape == x.shape
    torch.testing.assert_close(sae.encode(x)[1, 2], sae.encode(x[1, 2]))
    assert sae.encode(torch.empty(0, 6)).shape == (0, 10)


@CLASSES
def test_not_a_number_is_seen_in_the_reconstruction(make: Make) -> None:
    x = torch.randn(3, 6)
    x[1, 2] = float("nan")
    assert make(6)(x).reconstruction.isnan().any(dim=1).tolist() == [False, True, False]


@CLASSES
def test_saved_and_loaded_it_is_the_same(make: Make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sae = make(6, 11, subtract_decoder_bias=False, unit_norm=False)
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    sae.save_pretrained(tmp_path)
    loaded = Autoencoder.from_pretrained(tmp_path)
    assert type(loaded) is type(sae)
    assert loaded.config() == sae.config()
    x = torch.randn(4, 6)
    for mine, theirs in zip(sae(x), loaded(x), strict=True):
        assert torch.equal(mine, theirs)


@CLASSES
def test_bf16_autocast(make: Make) -> None:
    torch.manual_seed(0)
    sae = make(16, 32)
    x = torch.randn(50, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = sae(x)
    output.reconstruction.float().square().sum().backward()
    assert sae.decoder_weight.grad is not None
    error = (output.reconstruction - sae(x).reconstruction).norm() / sae(x).reconstruction.norm()
    assert error < 0.1


@CLASSES
def test_arguments_and_widths_that_cannot_be(make: Make) -> None:
    for arguments in ({"input_dim": 0}, {"input_dim": "8"}, {"input_dim": 8, "latent_dim": -4}):
        with pytest.raises(InputError, match="must be an integer of at least 1, got"):
            make(**arguments)
    with pytest.raises(InputError, match=r"activations of shape \(3, 5\).*dimension must be 8"):
        make(8).encode(torch.randn(3, 5))
    with pytest.raises(InputError, match=r"latents of shape \(3, 8\).*dimension must be 16"):
        make(8).decode(torch.randn(3, 8))
