import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.autoencoders import MatryoshkaAutoencoder
from palinka.training.losses import StepContext, loss_terms


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 1000), st.data())
def test_it_is_the_sum_over_prefixes(sizes: list[int], seed: int, data: st.DataObject) -> None:
    n = sum(sizes)
    k = data.draw(st.integers(1, n))
    torch.manual_seed(seed)
    sae = MatryoshkaAutoencoder(3, n, k, group_fractions=[size / n for size in sizes]).double()
    for parameter in sae.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(6, 3, dtype=torch.float64)
    dead = torch.arange(n) == n - 1

    a = ((x - sae.decoder_bias) @ sae.encoder.weight.T + sae.encoder.bias).relu()
    z = a * (a >= a.flatten().sort(descending=True).values[6 * k - 1])
    baseline = (x - x.mean(dim=0)).square().sum()
    expected, end = torch.zeros((), dtype=torch.float64), 0
    for size in sizes:
        end += size
        made = z[:, :end] @ sae.decoder_weight[:end] + sae.decoder_bias
        expected = expected + (made - x).square().sum() / baseline
    residual = (x - made).detach()
    mended = a[:, -1:] @ sae.decoder_weight[-1:]
    auxiliary = (mended - residual).square().sum()
    auxiliary = auxiliary / (residual - residual.mean(dim=0)).square().sum()

    found = loss_terms(sae, StepContext(x, x, dead=lambda: dead))
    torch.testing.assert_close(found.reconstruction, expected)
    torch.testing.assert_close(found.auxiliary, auxiliary)
    torch.testing.assert_close(found.output.latents, z)
    torch.testing.assert_close(found.output.reconstruction, made)
    gradients = torch.autograd.grad(expected + auxiliary, list(sae.parameters()))
    of_found = torch.autograd.grad(found.reconstruction + found.auxiliary, list(sae.parameters()))
    torch.testing.assert_close(of_found, gradients)
