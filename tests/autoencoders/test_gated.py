import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.autoencoders import GatedAutoencoder


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 1000))
def test_latents_are_the_papers(input_dim: int, latent_dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    sae = GatedAutoencoder(input_dim, latent_dim).double()
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, input_dim, dtype=torch.float64)
    w_gate = sae.encoder.weight
    w_mag = torch.exp(sae.log_magnitude)[:, None] * w_gate
    gate = (x - sae.decoder_bias) @ w_gate.T + sae.gate_bias
    magnitude = torch.relu((x - sae.decoder_bias) @ w_mag.T + sae.magnitude_bias)
    expected = torch.heaviside(gate, torch.zeros((), dtype=gate.dtype)) * magnitude
    torch.testing.assert_close(sae.encode(x), expected)
    reconstruction = expected @ sae.decoder_weight + sae.decoder_bias
    torch.testing.assert_close(sae(x).reconstruction, reconstruction)


def test_at_the_start_it_is_a_relu() -> None:
    torch.manual_seed(0)
    sae, x = GatedAutoencoder(4, 9), torch.randn(20, 4)
    torch.testing.assert_close(sae.encode(x), torch.relu(x @ sae.encoder.weight.T))


def test_a_closed_gate_holds_back_any_magnitude() -> None:
    sae = GatedAutoencoder(4, 9)
    sae.magnitude_bias.data.fill_(100.0)
    sae.gate_bias.data.fill_(-100.0)
    assert not sae.encode(torch.randn(20, 4)).any()
    sae.gate_bias.data.fill_(100.0)
    assert (sae.encode(torch.randn(20, 4)) > 50).all()


def test_what_latents_give_moves_the_magnitude_and_never_the_gate() -> None:
    torch.manual_seed(0)
    sae = GatedAutoencoder(4, 9)
    sae.encode(torch.randn(20, 4)).sum().backward()
    assert sae.gate_bias.grad is None
    assert sae.magnitude_bias.grad.any()
    assert sae.log_magnitude.grad.any()
