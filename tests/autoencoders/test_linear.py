from typing import Any

import pytest
import torch

from palinka.autoencoders import GatedAutoencoder, JumpReLUAutoencoder, ReLUAutoencoder

COMMON = {"encoder.weight": (10, 5), "decoder_weight": (10, 5), "decoder_bias": (5,)}
OWN = {
    ReLUAutoencoder: ["encoder.bias"],
    GatedAutoencoder: ["gate_bias", "magnitude_bias", "log_magnitude"],
    JumpReLUAutoencoder: ["encoder.bias", "log_threshold"],
}
KINDS = pytest.mark.parametrize("kind", list(OWN), ids=lambda kind: kind.__name__)


@KINDS
def test_the_encoder_begins_as_a_copy_of_random_directions(kind: Any) -> None:
    torch.manual_seed(0)
    sae = kind(64, 3000, unit_norm=True)
    assert torch.equal(sae.encoder.weight, sae.decoder_weight)
    assert sae.encoder.weight.data_ptr() != sae.decoder_weight.data_ptr()
    torch.testing.assert_close(sae.dictionary.norm(dim=1), torch.ones(3000))
    # Uniform on the sphere: no direction is preferred.
    covariance = sae.dictionary.detach().T @ sae.dictionary.detach() / 3000
    torch.testing.assert_close(covariance, torch.eye(64) / 64, atol=0.002, rtol=0)
    assert all(not p.any() for name, p in sae.named_parameters() if "bias" in name)


@KINDS
def test_the_names_and_shapes_of_parameters(kind: Any) -> None:
    sae = kind(5)
    shapes = {name: tuple(p.shape) for name, p in sae.named_parameters()}
    assert shapes == {**COMMON, **dict.fromkeys(OWN[kind], (10,))}
    assert not sae.state_dict().keys() - shapes.keys()


@KINDS
@pytest.mark.parametrize("subtract", [True, False])
def test_the_decoder_bias_is_added_and_where_asked_subtracted(kind: Any, subtract: bool) -> None:
    torch.manual_seed(0)
    sae = kind(4, 9, subtract_decoder_bias=subtract)
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    bias = sae.decoder_bias.detach().clone()
    x, z = torch.randn(7, 4), torch.randn(7, 9)
    torch.testing.assert_close(sae.decode(z), z @ sae.decoder_weight + bias)
    latents = sae.encode(x)
    assert (latents > 0).any()
    sae.decoder_bias.data.zero_()
    torch.testing.assert_close(sae.encode(x - bias if subtract else x), latents)


def test_free_norms_begin_at_a_tenth() -> None:
    torch.testing.assert_close(ReLUAutoencoder(5).dictionary.norm(dim=1), torch.full((10,), 0.1))


def test_a_gate_begins_open_and_latents_never_move_it() -> None:
    torch.manual_seed(0)
    sae, x = GatedAutoencoder(4, 9), torch.randn(20, 4)
    latents = sae.encode(x)
    torch.testing.assert_close(latents, torch.relu(x @ sae.encoder.weight.T))
    latents.sum().backward()
    assert sae.gate_bias.grad is None
    assert sae.magnitude_bias.grad.any()
    assert sae.log_magnitude.grad.any()
