import pytest
import torch

from palinka.errors import InputError
from palinka.training import decorrelation_loss, reconstruction_loss, sparsity_loss


def test_each_is_its_definition() -> None:
    torch.manual_seed(0)
    x, x_hat = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    latents = torch.randn(2, 5, 9)
    assert reconstruction_loss(x_hat, x).item() == pytest.approx(
        sum(
            (a - b) ** 2
            for a, b in zip(x_hat.flatten().tolist(), x.flatten().tolist(), strict=True)
        )
        / 40
    )
    assert sparsity_loss(latents).item() == pytest.approx(latents.abs().sum().item() / 90)
    covariance = torch.cov(latents.reshape(10, 9).T)
    expected = covariance.square().sum() - covariance.diagonal().square().sum()
    assert decorrelation_loss(latents).item() == pytest.approx(expected.item())


def test_low_precision_is_averaged_in_single() -> None:
    torch.manual_seed(0)
    latents = torch.rand(300, 300).bfloat16()
    assert sparsity_loss(latents).dtype == torch.float32
    assert sparsity_loss(latents).item() == pytest.approx(latents.double().mean().item(), rel=1e-6)
    loss = reconstruction_loss(latents, latents + 1)
    assert loss.dtype == torch.float32
    exact = (latents.double() - (latents + 1).double()).square().mean().item()
    assert loss.item() == pytest.approx(exact, rel=1e-6)


def test_one_observation_has_no_covariance() -> None:
    with pytest.raises(InputError, match="at least 2 rows"):
        decorrelation_loss(torch.randn(6))
