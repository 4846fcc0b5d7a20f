import math
from typing import Any, get_args

import pytest
import torch

from palinka.data import SyntheticData
from palinka.data.synthetic import Amplitude
from palinka.errors import InputError


def test_rows_are_combinations_of_the_directions() -> None:
    data = SyntheticData(features=30, width=12, active=3)
    x, latents = data.sample(50, seed=1)
    assert data.directions.shape == (30, 12)
    torch.testing.assert_close(data.directions.norm(dim=1), torch.ones(30))
    assert x.dtype == latents.dtype == torch.float32
    for row, strengths in zip(x, latents, strict=True):
        by_hand = torch.zeros(12)
        for strength, direction in zip(strengths, data.directions, strict=True):
            by_hand += strength * direction
        torch.testing.assert_close(row, by_hand)


@pytest.mark.parametrize("amplitude", get_args(Amplitude))
def test_as_many_are_active_as_asked_with_a_mean_amplitude_of_one(amplitude: Amplitude) -> None:
    data = SyntheticData(features=20, width=8, active=3.5, amplitude=amplitude)
    latents = data.sample(20_000, seed=0).latents
    active = latents > 0
    assert (latents >= 0).all()
    torch.testing.assert_close(
        active.float().mean(dim=0), torch.full((20,), 3.5 / 20), atol=0.012, rtol=0
    )
    strengths = latents[active]
    assert strengths.mean().item() == pytest.approx(1.0, abs=0.015)
    spread = {
        "constant": 0.0,
        "uniform": 1 / math.sqrt(12),
        "half_normal": math.sqrt(math.pi / 2 - 1),
        "exponential": 1.0,
    }
    assert strengths.std().item() == pytest.approx(spread[amplitude], abs=0.03)
    # Whether one is active says nothing of another.
    assert torch.corrcoef(active.float().T).fill_diagonal_(0).abs().max() < 0.035


def test_noise_has_the_standard_deviation_that_was_asked_for() -> None:
    quiet = SyntheticData(6, 10, 1)
    noisy = SyntheticData(6, 10, 1, noise=0.25)
    (clean, latents), (x, same) = quiet.sample(5000, 3), noisy.sample(5000, 3)
    assert torch.equal(latents, same)
    assert (x - clean).std().item() == pytest.approx(0.25, rel=0.03)


def test_seeds_choose_directions_and_samples() -> None:
    data = SyntheticData(9, 5, 2, seed=4)
    assert torch.equal(data.sample(7, 1).x, SyntheticData(9, 5, 2, seed=4).sample(7, 1).x)
    assert not torch.equal(data.sample(7, 1).x, data.sample(7, 2).x)
    assert not torch.equal(data.directions, SyntheticData(9, 5, 2, seed=5).directions)
    torch.manual_seed(0)
    before = torch.rand(3)
    torch.manual_seed(0)
    data.sample(7, 1)
    assert torch.equal(torch.rand(3), before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"features": 0}, "features must be an integer of at least 1, got 0"),
        ({"width": 2.0}, r"width must be an integer of at least 1, got 2\.0"),
        ({"active": 0}, "active must be more than 0 and at most the 8 features, got 0"),
        ({"active": 9}, "at most the 8 features, got 9"),
        ({"active": float("nan")}, "at most the 8 features, got nan"),
        ({"amplitude": "normal"}, "amplitude must be one of constant.*, got 'normal'"),
        ({"noise": -1}, "noise must be at least 0, got -1"),
        ({"noise": float("inf")}, "noise must be at least 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    ],
)
def test_what_cannot_be_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SyntheticData(**{"features": 8, "width": 4, "active": 2, **wrong})


def test_a_sample_needs_rows_and_a_seed() -> None:
    for rows, seed in ((0, 1), (5, -1)):
        with pytest.raises(InputError, match="a sample has at least 1 row"):
            SyntheticData(8, 4, 2).sample(rows, seed)
