"""Closed forms of values on vectors; formulas of all of them are compared in `test_engine`."""

from typing import Any

import pytest
import torch
from torch import Tensor

from palinka.interventions.plan import (
    Mean,
    Median,
    ProjectOut,
    Scale,
    ScaleContribution,
    SetAlong,
    Steer,
    TopToMedian,
)


@pytest.fixture
def h() -> Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def basis() -> Tensor:
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_scale_one_and_steer_zero_are_the_identity(h: Tensor) -> None:
    assert torch.equal(Scale(1)(h), h)
    assert torch.equal(Steer(h[0], 0)(h, torch.ones(7, 1)), h)
    assert torch.allclose(ScaleContribution(1)(h, 0 * h + 3), h)
    assert torch.equal(ScaleContribution(0)(h, 0 * h + 3), 0 * h + 3)


def test_projections(h: Tensor, basis: Tensor) -> None:
    value, mean = ProjectOut(basis), h.mean(0).expand_as(h)
    once = value(h, mean)
    assert torch.allclose(value(once, mean), once)
    assert torch.allclose((once - mean) @ basis, torch.zeros(7, 2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(ProjectOut(torch.eye(5))(h, mean), mean)
    uncentered = ProjectOut(basis, centered=False)(h, mean)
    assert torch.allclose(uncentered @ basis, torch.zeros(7, 2, dtype=torch.float64), atol=1e-12)


def test_an_oblique_projection_fixes_its_score_and_spares_what_does_not_correlate(
    h: Tensor, basis: Tensor
) -> None:
    """Pattern a = C w: what is uncorrelated with w.h is unchanged by removing a."""
    centered = h - h.mean(0)
    filters = basis[:, :1]
    patterns = centered.T @ centered @ filters
    new = ProjectOut(patterns, filters)(h, h.mean(0).expand_as(h))
    assert torch.allclose(new @ filters, h.mean(0) @ filters)
    other = basis[:, 1] - (basis[:, 1] @ patterns) / (filters.T @ patterns) @ filters.T
    assert abs(float(other @ patterns)) < 1e-12
    assert torch.allclose(new @ other[0], h @ other[0])


def test_a_component_is_set_in_its_unit_or_in_standard_deviations(h: Tensor) -> None:
    direction = 3 * torch.eye(5, dtype=torch.float64)[1]
    expected = h.clone()
    expected[:, 1] = 0.5
    assert torch.allclose(SetAlong(direction, 0.5)(h, torch.zeros(7, 2)), expected)
    standardized = SetAlong(direction, 0.5, standardized=True)
    summary = standardized.summary(h).expand(7, 2)
    expected[:, 1] = h[:, 1].mean() + 0.5 * h[:, 1].std()
    assert torch.allclose(standardized(h, summary), expected)


def test_medians_are_the_lower_of_two() -> None:
    rows = torch.tensor([[4.0, 1.0], [1.0, 2.0], [3.0, 4.0], [2.0, 3.0]])
    assert Median().summary(rows).tolist() == [2.0, 2.0]
    assert Mean().summary(rows).tolist() == [2.5, 2.5]
    assert TopToMedian(50)(torch.tensor([[4.0, 1.0, 3.0, 2.0]])).tolist() == [[2.0, 1.0, 2.0, 2.0]]
    assert Steer(rows[0], 1).summary(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).tolist() == [1.0]


@pytest.mark.parametrize("value", [Mean(), ProjectOut(torch.eye(2)), Steer(torch.ones(2), 1)])
def test_values_are_keys(value: Any) -> None:
    """Cells that share a value run together."""
    assert {value: 1}[value] == 1
    assert Mean() == Mean()
