"""Every architecture finds the dictionary that its data was made of."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import palinka.autoencoders
from palinka.autoencoders import Autoencoder, LayerNormalizedAutoencoder

NAMES = [
    "KSparse",
    "TopK",
    "BatchTopK",
    "Matryoshka",
    "ReLU",
    "Gated",
    "JumpReLU",
    "JumpReLU, tanh",
]

TINY = {"features": 4, "width": 4, "active": 1, "latents": 32, "steps": 2, "seeds": 1}


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("ground_truth")


def test_no_architecture_is_left_out(script: ModuleType) -> None:
    assert list(script.RECIPES) == NAMES
    trained = {type(recipe.make(8, 32, 2)) for recipe in script.RECIPES.values()}
    exported = {getattr(palinka.autoencoders, name) for name in palinka.autoencoders.__all__}
    # What others trained on layer-normed activations, and only read here.
    exported.discard(LayerNormalizedAutoencoder)
    assert trained == {
        kind for kind in exported if issubclass(kind, Autoencoder) and not inspect.isabstract(kind)
    }


@pytest.mark.parametrize("name", NAMES)
def test_it_finds_nearly_all_of_an_easy_dictionary(script: ModuleType, name: str) -> None:
    data = script.cases(features=16, width=32, active=2.0)["easy"]
    recipe, schedule = script.RECIPES[name], script.Schedule(250, rows=128, learning_rate=0.02)
    found = script.measure(script.train(recipe, data, 32, schedule, seed=0), data)
    assert found.cosine >= 0.95
    assert found.fvu < 0.3
    assert found.l0 < 5


def test_without_training_it_finds_nothing(script: ModuleType) -> None:
    data = script.cases(features=16, width=32, active=2.0)["easy"]
    for recipe in script.RECIPES.values():
        torch.manual_seed(0)
        assert script.measure(recipe.make(32, 32, 2), data).cosine < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_finds_nearly_all_of_a_larger_one(script: ModuleType, name: str) -> None:
    data = script.cases(features=128, width=64, active=4.0)["easy"]
    found = script.measure(
        script.train(script.RECIPES[name], data, 256, script.Schedule(2000), seed=0), data
    )
    assert found.cosine >= 0.95


def test_the_table_is_written(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [f"--{name}={n}" for name, n in TINY.items()]
    output = tmp_path / "new" / "table.md"
    monkeypatch.setattr(sys, "argv", ["ground_truth.py", *sizes, "--output", str(output)])
    script.main()
    lines = [line for line in output.read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + 3 * len(NAMES)
    assert f"| {NAMES[0]} | easy | " in lines[1]
