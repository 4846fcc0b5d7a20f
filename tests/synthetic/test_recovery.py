import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.data import mean_max_cosine
from palinka.data import synthetic as recovery
from palinka.errors import InputError


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
        patch.setattr(recovery, "_BLOCK", block)
        assert mean_max_cosine(dictionary, directions) == pytest.approx(
            plain(dictionary, directions), abs=1e-12
        )


def test_one_where_each_direction_is_some_latents() -> None:
    torch.manual_seed(0)
    directions = torch.randn(7, 5)
    latents = torch.cat([torch.randn(4, 5), 3.0 * directions.flip(0)])
    assert mean_max_cosine(latents, directions) == pytest.approx(1.0, abs=1e-6)
    assert mean_max_cosine(-directions[:1], directions[:1]) == pytest.approx(-1.0, abs=1e-6)
    assert mean_max_cosine(torch.zeros(3, 5), directions) == 0.0


def test_parameters_and_low_precision_are_taken() -> None:
    torch.manual_seed(0)
    directions = torch.randn(7, 5)
    parameter = torch.nn.Parameter(directions.bfloat16())
    assert mean_max_cosine(parameter, directions) == pytest.approx(1.0, abs=1e-4)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match=r"got \(3, 4\) and \(3, 5\)"):
        mean_max_cosine(torch.ones(3, 4), torch.ones(3, 5))
    with pytest.raises(InputError, match=r"got \(4,\) and \(3, 4\)"):
        mean_max_cosine(torch.ones(4), torch.ones(3, 4))
    with pytest.raises(InputError, match="at least one row"):
        mean_max_cosine(torch.ones(0, 4), torch.ones(3, 4))
