from typing import Any

import pytest
import torch

from palinka.data import HierarchicalData, families
from palinka.errors import InputError


def test_a_child_is_active_only_if_its_parent_is() -> None:
    parents = [None, 0, 0, 1, None, 4]
    data = HierarchicalData(6, 8, 1.6, parents=parents, child_probability=0.4)
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


def test_families_are_a_parent_and_its_children_in_turn() -> None:
    assert families(8, 2) == [None, 0, 0, None, 3, 3, None, 6]
    assert families(3, 0) == [None, None, None]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"parents": [None, 0]}, "an entry for each of the 4 features, got 2"),
        ({"parents": [None, 1, 0, 0]}, "parent of feature 1 must be a feature before it, got 1"),
        ({"parents": [None, 0, -1, 0]}, "parent of feature 2 must be a feature before it, got -1"),
        ({"child_probability": 0.0}, "child_probability must be more than 0 and at most 1, got"),
        ({"child_probability": 1.5}, "child_probability must be more than 0 and at most 1, got"),
        ({"active": 3.5}, "active with probability 1.4 for 3.5 to be active"),
        ({"active": 5}, "at most the 4 features"),
    ],
)
def test_what_cannot_be_is_named(wrong: dict[str, Any], message: str) -> None:
    right = {"features": 4, "width": 4, "active": 1, "parents": [None, 0, 0, 0]}
    with pytest.raises(InputError, match=message):
        HierarchicalData(**{**right, **wrong})


def test_samples_are_the_same_for_the_same_seed() -> None:
    data = HierarchicalData(9, 5, 1, parents=families(9, 2))
    assert torch.equal(data.sample(7, 1).x, data.sample(7, 1).x)
