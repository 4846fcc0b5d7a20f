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


def test_it_begins_as_a_relu_and_latents_never_move_the_gate() -> None:
    torch.manual_seed(0)
    sae, x = GatedAutoencoder(4, 9), torch.randn(20, 4)
    latents = sae.encode(x)
    torch.testing.assert_close(latents, torch.relu(x @ sae.encoder.weight.T))
    latents.sum().backward()
    assert sae.gate_bias.grad is None
    assert sae.magnitude_bias.grad.any()
    assert sae.log_magnitude.grad.any()
