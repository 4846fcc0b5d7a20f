import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.autoencoders import ReLUAutoencoder


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 1000))
def test_latents_and_reconstruction_are_the_papers(d: int, n: int, seed: int) -> None:
    torch.manual_seed(seed)
    sae = ReLUAutoencoder(d, n).double()
    torch.testing.assert_close(sae.dictionary.norm(dim=1), torch.full((n,), 0.1).double())
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    for row in torch.randn(5, d, dtype=torch.float64):
        by_hand = sae.decoder_bias.clone()
        latents, reconstruction = sae(row)[::-1]
        for j in range(n):
            f = sae.encoder.weight[j] @ (row - sae.decoder_bias) + sae.encoder.bias[j]
            torch.testing.assert_close(latents[j], f.clamp(min=0.0))
            by_hand += f.clamp(min=0.0) * sae.decoder_weight[j]
        torch.testing.assert_close(reconstruction, by_hand)
