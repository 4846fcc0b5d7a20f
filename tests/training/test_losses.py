import pytest
import torch

from palinka.autoencoders import AutoencoderOutput
from palinka.errors import InputError
from palinka.training import decorrelation_loss, reconstruction_loss, sparsity_loss
from palinka.training.losses import Objective, StepContext, linear_warmup, mse_l1_terms


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


def test_the_total_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4)
    output = AutoencoderOutput(torch.randn(6, 4), torch.randn(6, 9))
    losses = Objective(2.0, 3.0, 0, 0)(mse_l1_terms(output, StepContext(x, x)), step=0)
    assert losses.reconstruction == reconstruction_loss(output.reconstruction, x)
    assert losses.sparsity == 2.0 * sparsity_loss(output.latents)
    assert losses.decorrelation == 3.0 * decorrelation_loss(output.latents)
    assert losses.total == losses.reconstruction + losses.sparsity + losses.decorrelation


def test_each_penalty_warms_up_by_itself() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4)
    output = AutoencoderOutput(torch.randn(6, 4), torch.randn(6, 9))
    full = Objective(2.0, 3.0, 0, 0)(mse_l1_terms(output, StepContext(x, x)), step=0)
    for step, sparsity, decorrelation in [
        (0, 0.0, 0.0),
        (5, 0.5, 0.05),
        (10, 1.0, 0.1),
        (200, 1, 1),
    ]:
        losses = Objective(2.0, 3.0, 10, 100)(mse_l1_terms(output, StepContext(x, x)), step)
        assert losses.sparsity.item() == pytest.approx(sparsity * full.sparsity.item())
        assert losses.decorrelation.item() == pytest.approx(
            decorrelation * full.decorrelation.item()
        )
        assert losses.reconstruction == full.reconstruction


def test_the_warmup_is_linear() -> None:
    assert [linear_warmup(step, 4) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert linear_warmup(0, 0) == 1.0


def test_without_weight_one_row_is_enough() -> None:
    output = AutoencoderOutput(torch.randn(1, 4), torch.randn(1, 9))
    x = torch.randn(1, 4)
    losses = Objective(1.0, 0.0, 0, 0)(mse_l1_terms(output, StepContext(x, x)), step=0)
    assert losses.decorrelation == 0.0
