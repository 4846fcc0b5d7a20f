import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.autoencoders import ReLUAutoencoder


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 1000))
def test_latents_and_reconstruction_are_the_papers(
    input_dim: int, latent_dim: int, seed: int
) -> None:
    torch.manual_seed(seed)
    sae = ReLUAutoencoder(input_dim, latent_dim).double()
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, input_dim, dtype=torch.float64)
    for i, row in enumerate(x):
        f = torch.zeros(latent_dim, dtype=torch.float64)
        for j in range(latent_dim):
            f[j] = max(0.0, sae.encoder.weight[j] @ (row - sae.decoder_bias) + sae.encoder.bias[j])
        torch.testing.assert_close(sae.encode(x)[i], f)
        by_hand = sae.decoder_bias + sum(f[j] * sae.decoder_weight[j] for j in range(latent_dim))
        torch.testing.assert_close(sae(x).reconstruction[i], by_hand)


def test_free_norms_begin_at_a_tenth_and_held_ones_at_one() -> None:
    torch.testing.assert_close(ReLUAutoencoder(5).dictionary.norm(dim=1), torch.full((10,), 0.1))
    held = ReLUAutoencoder(5, unit_norm=True).dictionary.norm(dim=1)
    torch.testing.assert_close(held, torch.ones(10))
