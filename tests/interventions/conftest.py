from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from language_models.conftest import CONFIGS, folders, unhooked
from palinka.interventions.pairs import Pairs
from palinka.language_models import LanguageModel

__all__ = ["folders"]


@pytest.fixture(scope="session")
def doubles(folders: dict[str, Path]) -> dict[str, LanguageModel]:
    """Random models of all families, in float64."""
    return {
        name: LanguageModel.from_pretrained(str(folders[name]), dtype="float64", device="cpu")
        for name in CONFIGS
    }


@pytest.fixture(params=sorted(CONFIGS))
def any_model(
    request: pytest.FixtureRequest, doubles: dict[str, LanguageModel]
) -> Iterator[LanguageModel]:
    yield from unhooked(doubles[request.param])


@pytest.fixture
def gpt2(doubles: dict[str, LanguageModel]) -> Iterator[LanguageModel]:
    yield from unhooked(doubles["gpt2"])


@pytest.fixture
def pairs() -> Pairs:
    """Prompts of 7 and 9 tokens in two templates, of which the third and fifth tokens differ."""
    random = np.random.default_rng(0)
    clean = [random.integers(1, 8192, 9 if i % 3 == 2 else 7).tolist() for i in range(6)]
    corrupted = [list(ids) for ids in clean]
    for ids in corrupted:
        ids[2], ids[4] = random.integers(1, 8192, 2).tolist()
    answers = random.integers(1, 8192, (6, 3)).tolist()
    roles = {"subject": [2] * 6, "verb": [3 if i % 3 == 2 else 5 for i in range(6)]}
    return Pairs(
        clean, corrupted, [a[: 1 + i % 2] for i, a in enumerate(answers)], [a[2:] for a in answers],
        ["short", "short", "long"] * 2, roles,
    )  # fmt: skip
