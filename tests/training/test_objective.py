import pytest
import torch

from palinka.autoencoders import AutoencoderOutput
from palinka.errors import InputError
from palinka.training import decorrelation_loss, reconstruction_loss, sparsity_loss
from palinka.training.losses import Objective, Step, linear_warmup, terms_of


def test_the_total_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4)
    output = AutoencoderOutput(torch.randn(6, 4), torch.randn(6, 9))
    losses = Objective(2.0, 3.0, 0, 0)(terms_of(output, Step(x, x)), step=0)
    assert losses.reconstruction == reconstruction_loss(output.reconstruction, x)
    assert losses.sparsity == 2.0 * sparsity_loss(output.latents)
    assert losses.decorrelation == 3.0 * decorrelation_loss(output.latents)
    assert losses.total == losses.reconstruction + losses.sparsity + losses.decorrelation


def test_each_penalty_warms_up_by_itself() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4)
    output = AutoencoderOutput(torch.randn(6, 4), torch.randn(6, 9))
    full = Objective(2.0, 3.0, 0, 0)(terms_of(output, Step(x, x)), step=0)
    for step, sparsity, decorrelation in [
        (0, 0.0, 0.0),
        (5, 0.5, 0.05),
        (10, 1.0, 0.1),
        (200, 1, 1),
    ]:
        losses = Objective(2.0, 3.0, 10, 100)(terms_of(output, Step(x, x)), step)
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
    losses = Objective(1.0, 0.0, 0, 0)(terms_of(output, Step(x, x)), step=0)
    assert losses.decorrelation == 0.0


@pytest.mark.parametrize("name", ["sparsity_weight", "decorrelation_warmup_steps"])
@pytest.mark.parametrize("value", [-1, float("nan")])
def test_a_negative_value_is_named(name: str, value: float) -> None:
    settings = {
        "sparsity_weight": 1.0,
        "decorrelation_weight": 1.0,
        "sparsity_warmup_steps": 0,
        "decorrelation_warmup_steps": 0,
    }
    with pytest.raises(InputError, match=f"{name} must be at least 0"):
        Objective(**{**settings, name: value})
