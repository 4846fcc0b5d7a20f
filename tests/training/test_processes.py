"""Two processes must find what one finds: penalties, gradients, metrics, weights."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("processes.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, on_processes: Any) -> dict[int, Any]:
    folder = tmp_path_factory.mktemp("processes")
    with on_processes(SCRIPT, 2, 2, folder):
        runpy.run_path(str(SCRIPT))["main"](0, 1, folder)
    return {n: torch.load(folder / f"{n}.pt", weights_only=True) for n in (1, 2)}


@pytest.mark.parametrize("latent_dim", ["48", "6"])
def test_the_penalty_and_its_gradient(found: dict[int, Any], latent_dim: str) -> None:
    one, two = (found[n][latent_dim]["penalty"] for n in (1, 2))
    torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-12)
    assert one[0] > 0


@pytest.mark.parametrize("latent_dim", ["48", "6"])
def test_every_logged_value(found: dict[int, Any], latent_dim: str) -> None:
    one, two = (found[n][latent_dim]["training"]["logged"] for n in (1, 2))
    assert len(one) == len(two) == 50
    assert "loss/total" in one[2]
    for step in (2, 5, 8, 11):
        assert two[step] == pytest.approx(one[step], rel=1e-9)
    if latent_dim == "48":
        assert 0 < one[11]["sparsity/dead"] < 1


@pytest.mark.parametrize("latent_dim", ["48", "6"])
def test_validation_with_unequal_shares(found: dict[int, Any], latent_dim: str) -> None:
    one, two = (found[n][latent_dim]["training"]["measured"] for n in (1, 2))
    assert "val/fvu" in one
    assert two == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize("latent_dim", ["48", "6"])
def test_the_weights_and_the_firing_counts(found: dict[int, Any], latent_dim: str) -> None:
    one, two = (found[n][latent_dim]["training"]["states"] for n in (1, 2))
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)
    counts = [state["firing.tokens_since"] for state in one]
    assert all(count.unique().numel() > 1 for count in counts) or latent_dim == "6"


def test_the_largest_values_of_the_batch(found: dict[int, Any]) -> None:
    assert found[2]["thresholds"] == found[1]["thresholds"]


def test_what_chooses_from_the_batch_and_begins_from_the_data(found: dict[int, Any]) -> None:
    one, two = (found[n]["nested"] for n in (1, 2))
    torch.testing.assert_close(two["state"], one["state"], rtol=1e-9, atol=1e-12)
    for mine, theirs in zip(two["logged"], one["logged"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)
    assert any(logged["loss/auxiliary"] > 0 for logged in one["logged"])
    assert one["thresholds"][0] > 0
    assert two["thresholds"] == 2 * [two["thresholds"][0]]
