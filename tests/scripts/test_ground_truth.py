"""Every architecture is compared with the features that its data is made of."""

import inspect
import sys
from math import exp, log
from pathlib import Path
from types import ModuleType

import pytest
import torch

import palinka.autoencoders
from palinka.autoencoders import Autoencoder, LayerNormalizedAutoencoder
from palinka.data import Firing, StructuredData, mean_max_cosine

NAMES = ["KSparse", "TopK", "BatchTopK", "Matryoshka", "ReLU", "Gated", "JumpReLU"]


def test_no_architecture_is_left_out(script: ModuleType) -> None:
    assert list(script.RECIPES) == NAMES
    trained = {type(recipe.make(8, 32, 2)) for recipe in script.RECIPES.values()}
    exported = {kind for kind in vars(palinka.autoencoders).values() if isinstance(kind, type)}
    # What others trained on layer-normed activations, and only read here.
    exported.discard(LayerNormalizedAutoencoder)
    assert trained == {
        kind for kind in exported if issubclass(kind, Autoencoder) and not inspect.isabstract(kind)
    }


def test_training_finds_nearly_all_of_an_easy_dictionary(script: ModuleType) -> None:
    data = StructuredData(16, 32, Firing(0.125, 0.125))
    schedule = script.Schedule(250, rows=128, learning_rate=0.02)
    penalties = {"ReLU": 3.0, "Gated": 5.0, "JumpReLU": 6.0}
    made = [(name, 2, penalties.get(name, 0.0), 0) for name in NAMES]
    x = data.sample(2000, 0).x
    for name, own in zip(NAMES, script.train(made, data, 32, schedule, 1), strict=True):
        reconstruction, latents = own(x)
        error = (x - reconstruction).square().sum() / (x - x.mean(dim=0)).square().sum()
        assert mean_max_cosine(own.dictionary, data.directions) >= 0.95, name
        assert error < 0.3, name
        assert (latents != 0).sum(dim=1).double().mean() < 5, name


def test_tuning_goes_to_the_target(script: ModuleType) -> None:
    points = [(log(0.01), 0.0)]
    for _ in range(12):
        active = 40 * exp(points[-1][0]) ** -0.7 + 1
        points[-1] = (points[-1][0], log(active / 8))
        points.append((script.next_penalty(points), 0.0))
    assert active == pytest.approx(8, rel=0.03)


def test_the_table_is_written(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Here:
        """A pool of this process."""

        def __init__(self, _: int) -> None:
            self.map = map

        def __enter__(self) -> "Here":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(script, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(script, "PASSES", 1)
    monkeypatch.setattr(script, "TEST_ROWS", 200)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    output = tmp_path / "new" / "table.md"
    given = ["--latents", "64", "--steps", "2", "--seeds", "3", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["ground_truth.py", *given])
    script.main()
    lines = [line for line in output.read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + 3 * (len(NAMES) + 1)
    assert lines[1].startswith(f"| {NAMES[0]} | 4 | 0.")
    assert " ± " in lines[1]
