import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.data import SyntheticData, mean_max_cosine
from palinka.data import synthetic as recovery
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


def test_seeds_alone_choose_directions_and_samples() -> None:
    data = SyntheticData(9, 5, 2, seed=4)
    state = torch.get_rng_state()
    assert torch.equal(data.sample(7, 1).x, SyntheticData(9, 5, 2, seed=4).sample(7, 1).x)
    assert not torch.equal(data.sample(7, 1).x, data.sample(7, 2).x)
    assert not torch.equal(data.directions, SyntheticData(9, 5, 2, seed=5).directions)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"active": 0}, "active must be in .0, 8., got 0"),
        ({"active": 9}, "active must be in .0, 8., got 9"),
        ({"amplitude": "normal"}, "amplitude must be one of constant.*, got 'normal'"),
    ],
)
def test_bad_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SyntheticData(**{"features": 8, "width": 4, "active": 2, **wrong})


def plain(dictionary: torch.Tensor, directions: torch.Tensor) -> float:
    """Pair by pair, as it is defined."""
    best = []
    for direction in directions.tolist():
        cosines = []
        for latent in dictionary.tolist():
            product = sum(a * b for a, b in zip(direction, latent, strict=True))
            norms = math.hypot(*direction) * math.hypot(*latent)
            cosines.append(product / norms if norms > 0 else 0.0)
        best.append(max(cosines))
    return sum(best) / len(best)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 40),
    st.integers(0, 1000),
)  # fmt: skip
def test_it_is_the_plain_definition_whatever_the_block(
    latents: int, features: int, width: int, block: int, seed: int
) -> None:
    torch.manual_seed(seed)
    dictionary = torch.randn(latents, width, dtype=torch.float64)
    dictionary[seed % latents] *= seed % 3
    directions = torch.randn(features, width, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery, "_CHUNK", block)
        assert mean_max_cosine(dictionary, directions) == pytest.approx(
            plain(dictionary, directions), abs=1e-12
        )
