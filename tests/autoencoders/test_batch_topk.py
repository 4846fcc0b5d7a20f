import pytest
import torch

from palinka.autoencoders import BatchTopKAutoencoder


def test_otherwise_a_row_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    sae = BatchTopKAutoencoder(4, 9, 2).eval()
    x = torch.randn(6, 4)
    assert sae.train().encode(x).count_nonzero() == 12
    assert sae.threshold == 0  # encoding changes nothing
    assert torch.equal(sae.eval().encode(x), sae.candidates(x))  # before training, everything
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
