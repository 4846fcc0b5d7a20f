import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palinka.autoencoders import BatchTopKAutoencoder


def transcription(sae: BatchTopKAutoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's equations for a batch; ties with the smallest kept value are all kept."""
    a = ((x - sae.decoder_bias) @ sae.encoder.weight.T + sae.encoder.bias).relu()
    smallest = sorted(a.flatten().tolist(), reverse=True)[len(x) * sae.k - 1]
    z = a * (a >= smallest)
    return z, z @ sae.decoder_weight + sae.decoder_bias


def perturbed(sae: BatchTopKAutoencoder) -> BatchTopKAutoencoder:
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return sae


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 1000), st.data())
def test_in_training_it_is_the_paper(d: int, n: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    torch.manual_seed(seed)
    sae = perturbed(BatchTopKAutoencoder(d, n, k).double())
    x = torch.randn(5, d, dtype=torch.float64)
    z, reconstruction = transcription(sae, x)
    output = sae(x)
    torch.testing.assert_close(output.latents, z)
    torch.testing.assert_close(output.reconstruction, reconstruction)
    assert sae.threshold == 0  # looking changes nothing


def test_otherwise_a_row_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    sae = perturbed(BatchTopKAutoencoder(4, 9, 2)).eval()
    x = torch.randn(6, 4)
    assert torch.equal(sae.encode(x), sae.candidates(x))  # before training, everything
    sae.threshold.fill_(0.7)
    values = sae.candidates(x)
    assert torch.equal(sae.encode(x), values * (values > 0.7))
    torch.testing.assert_close(sae.encode(x)[2:3], sae.encode(x[2:3]))
    assert 0 < (sae.encode(x) > 0).sum() < (values > 0).sum()


def test_the_threshold_follows_and_chooses_in_float32_whatever_the_weights_are() -> None:
    sae = BatchTopKAutoencoder(1, 2, 1).to(torch.bfloat16)
    sae.move_threshold(torch.tensor(8.0, dtype=torch.bfloat16))
    assert sae.threshold == 8.0
    for _ in range(1000):
        sae.move_threshold(torch.tensor(4.0, dtype=torch.bfloat16))
    assert sae.threshold.item() == pytest.approx(4.0 + 4.0 * 0.99**1000, rel=1e-5)
    # In bfloat16, 4.02 is 4.03125, the next number after 4: an activation of just that is kept.
    with torch.no_grad():
        sae.encoder.weight.fill_(1.0)
        sae.threshold.fill_(4.02)
    kept = sae.eval().encode(torch.tensor([[4.03125], [4.0]], dtype=torch.bfloat16))
    assert (kept != 0).tolist() == [[True, True], [False, False]]
