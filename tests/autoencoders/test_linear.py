from typing import Any

import pytest
import torch
from torch import Tensor

from palinka.autoencoders import GatedAutoencoder, JumpReLUAutoencoder, ReLUAutoencoder, linear
from palinka.autoencoders.kernels.sparse import SparseLatents, Weights


@pytest.mark.parametrize("kind", [ReLUAutoencoder, GatedAutoencoder, JumpReLUAutoencoder])
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


def test_few_latents_of_many_are_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.empty(64, 1), torch.empty(1 << 14, 1)
    assert linear.use_sparse(x, weight, 32)
    assert not linear.use_sparse(x, weight, 1 << 13)
    assert not linear.use_sparse(x[:8], weight, 32)
    assert not linear.use_sparse(x, weight.bfloat16(), 32)
    assert not linear.use_sparse(x, weight.to("meta"), 32)
    x, weights = torch.randn(4, 3), Weights(torch.randn(30, 3))
    assert isinstance(linear.autoencode(x, weights, 2)[1], Tensor)
    monkeypatch.setattr(linear, "SPARSE_DENSITY", 1.0)
    monkeypatch.setattr(linear, "SPARSE_ELEMENTS", 1)
    assert isinstance(linear.autoencode(x, weights, 2)[1], SparseLatents)
