"""Every architecture finds the dictionary that its data was made of."""

import inspect
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import palinka.autoencoders
from palinka.autoencoders import Autoencoder, LayerNormalizedAutoencoder

NAMES = [
    "KSparse", "TopK", "BatchTopK", "Matryoshka", "ReLU", "Gated", "JumpReLU", "JumpReLU, tanh",
]  # fmt: skip


def test_no_architecture_is_left_out(script: ModuleType) -> None:
    assert list(script.RECIPES) == NAMES
    trained = {type(recipe.make(8, 32, 2)) for recipe in script.RECIPES.values()}
    exported = {kind for kind in vars(palinka.autoencoders).values() if isinstance(kind, type)}
    # What others trained on layer-normed activations, and only read here.
    exported.discard(LayerNormalizedAutoencoder)
    assert trained == {
        kind for kind in exported if issubclass(kind, Autoencoder) and not inspect.isabstract(kind)
    }


@pytest.mark.parametrize("name", NAMES)
def test_training_finds_nearly_all_of_an_easy_dictionary(script: ModuleType, name: str) -> None:
    data = script.cases(features=16, width=32, active=2.0)["easy"]
    recipe, schedule = script.RECIPES[name], script.Schedule(250, rows=128, learning_rate=0.02)
    torch.manual_seed(0)
    assert script.measure(recipe.make(32, 32, 2), data).cosine < 0.7
    found = script.measure(script.train(recipe, data, 32, schedule, seed=0), data)
    assert found.cosine >= 0.95
    assert found.fvu < 0.3
    assert found.l0 < 5


def test_the_table_is_written(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {"features": 4, "width": 4, "active": 1, "latents": 32, "steps": 2, "seeds": 1}
    sizes = [f"--{name}={n}" for name, n in tiny.items()]
    output = tmp_path / "new" / "table.md"
    monkeypatch.setattr(sys, "argv", ["ground_truth.py", *sizes, "--output", str(output)])
    script.main()
    lines = [line for line in output.read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + 3 * len(NAMES)
    assert f"| {NAMES[0]} | easy | " in lines[1]


def test_features_of_a_group_co_occur_and_keep_their_frequency(script: ModuleType) -> None:
    data = script.CorrelatedData(6, 8, 3.0, correlation=script.grouped_correlation(6, 2, 0.8))
    active = (data.sample(40_000, seed=0).latents > 0).double()
    torch.testing.assert_close(active.mean(dim=0).float(), torch.full((6,), 0.5), atol=0.01, rtol=0)
    # At a frequency of one half, Sheppard's formula says how the thresholded ones correlate.
    within = 2 / math.pi * math.asin(0.8)
    expected = torch.eye(6, dtype=torch.float64)
    for a, b in ((0, 1), (2, 3), (4, 5)):
        expected[a, b] = expected[b, a] = within
    torch.testing.assert_close(torch.corrcoef(active.T), expected, atol=0.02, rtol=0)
    assert script.grouped_correlation(5, 2, 0.5)[4].tolist() == [0, 0, 0, 0, 1]  # left over


def test_a_child_is_active_only_if_its_parent_is(script: ModuleType) -> None:
    parents = [None, 0, 0, 1, None, 4]
    data = script.HierarchicalData(6, 8, 1.6, parents=parents, child_probability=0.4)
    active = data.sample(40_000, seed=0).latents > 0
    frequency = active.double().mean(dim=0)
    # 1 + 0.4 + 0.4 + 0.16 + 1 + 0.4 times that of a root are active on average.
    root = 1.6 / 3.36
    for child, parent in enumerate(parents):
        if parent is None:
            assert frequency[child] == pytest.approx(root, abs=0.01)
        else:
            assert not (active[:, child] & ~active[:, parent]).any()
            given_parent = active[active[:, parent], child].double().mean()
            assert given_parent == pytest.approx(0.4, abs=0.015)
    assert active.sum(dim=1).double().mean() == pytest.approx(1.6, abs=0.03)
    siblings = (active[:, 1] & active[:, 2]).double().mean()
    assert siblings == pytest.approx(root * 0.16, abs=0.01)


def test_families_are_a_parent_and_its_children_in_turn(script: ModuleType) -> None:
    assert script.families(8, 2) == [None, 0, 0, None, 3, 3, None, 6]
    assert script.families(3, 0) == [None, None, None]
    data = script.HierarchicalData(9, 5, 1, parents=script.families(9, 2))
    assert torch.equal(data.sample(7, 1).x, data.sample(7, 1).x)
