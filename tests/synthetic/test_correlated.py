import math

import pytest
import torch

from palinka.data import CorrelatedData, grouped_correlation
from palinka.errors import InputError


def test_features_of_a_group_co_occur_and_keep_their_frequency() -> None:
    data = CorrelatedData(6, 8, 3.0, correlation=grouped_correlation(6, 2, 0.8))
    active = (data.sample(40_000, seed=0).latents > 0).double()
    torch.testing.assert_close(active.mean(dim=0).float(), torch.full((6,), 0.5), atol=0.01, rtol=0)
    # At a frequency of one half, Sheppard's formula says how the thresholded ones correlate.
    within = 2 / math.pi * math.asin(0.8)
    expected = torch.eye(6, dtype=torch.float64)
    for a, b in ((0, 1), (2, 3), (4, 5)):
        expected[a, b] = expected[b, a] = within
    torch.testing.assert_close(torch.corrcoef(active.T), expected, atol=0.02, rtol=0)


def test_negative_correlations_keep_features_apart() -> None:
    apart = [[1.0, -0.9], [-0.9, 1.0]]
    active = CorrelatedData(2, 4, 0.6, correlation=apart).sample(20_000, 0).latents > 0
    assert active.float().mean() == pytest.approx(0.3, abs=0.01)
    assert active.all(dim=1).float().mean() < 0.002


def test_perfectly_correlated_features_are_active_together() -> None:
    data = CorrelatedData(4, 5, 1.0, correlation=grouped_correlation(4, 4, 1.0))
    active = data.sample(2000, 0).latents > 0
    # But for values that round to either side of the threshold.
    assert ((active.sum(dim=1) % 4) == 0).float().mean() > 0.999


def test_without_correlation_a_group_is_nothing() -> None:
    assert torch.equal(grouped_correlation(5, 2, 0.0), torch.eye(5, dtype=torch.float64))
    assert grouped_correlation(5, 2, 0.5)[4].tolist() == [0, 0, 0, 0, 1]


def test_what_is_no_correlation_is_refused() -> None:
    for wrong in (torch.eye(3), torch.zeros(2, 2), torch.tensor([[1.0, 0.5], [0.2, 1.0]]), ()):
        with pytest.raises(InputError, match="symmetric matrix of 2 by 2 with ones on"):
            CorrelatedData(2, 4, 1, correlation=wrong)
    impossible = torch.full((3, 3), -0.9).fill_diagonal_(1.0)
    with pytest.raises(InputError, match=r"lowest eigenvalue is -0\.8"):
        CorrelatedData(3, 4, 1, correlation=impossible)
