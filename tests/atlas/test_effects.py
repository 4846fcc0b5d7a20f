from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palinka.atlas.analyses import Found, read_analyses

SITE = "blocks.3.mlp.pre"
Written = tuple[dict[str, Any], dict[str, Found]]


@pytest.fixture
def written(tmp_path: Path, make_interventions: Callable[..., dict[str, Any]]) -> Written:
    results = make_interventions(tmp_path)
    return results, {f.page["name"]: f for f in read_analyses(tmp_path, 150, SITE)}


def rows(found: Found, latent: int) -> dict[str, list[float]]:
    (entry,) = found.effects[latent]
    assert "logit difference" in entry["about"]
    return {label: numbers for label, *numbers in entry["rows"]}


@pytest.mark.parametrize(("latent", "at"), [(3, 0), (5, 1)])
def test_steering_along_a_latent_has_its_effect_at_matched_kl(
    written: Written, latent: int, at: int
) -> None:
    result, nan = written[0]["steering"], np.nan
    own = rows(written[1]["my_steering"], latent)
    negative, positive = result.effect_at_kl[at]
    assert np.isnan(positive) == (latent == 5), "its KL stays below 0.1 nats"
    interval = result.slope[at], result.slope_low[at], result.slope_high[at]
    expected = {
        "added, at a KL of 0.1": [positive, nan, nan, nan],
        "subtracted, at a KL of 0.1": [negative, nan, nan, nan],
        "slope": [*interval, nan],
        "against isotropic": [nan, nan, nan, result.p[0, at]],
    }
    assert own.keys() == expected.keys()
    for label, numbers in expected.items():
        np.testing.assert_array_equal(own[label], numbers)


def test_latents_have_their_cells_of_ablation_and_lesion(written: Written) -> None:
    results, found = written
    names = "effect", "effect_low", "effect_high", "p_corrected"
    of = results["ablation"]
    assert rows(found["my_ablation"], 5) == {
        value: [getattr(of, name)[cell] for name in names]
        for value, cell in (("zero", 1), ("mean", 3))
    }
    (own,) = rows(found["my_lesion"], 9).items()
    assert own == ("2 latents together", [getattr(results["lesion"], name)[0] for name in names])
    assert found["my_lesion"].effects.keys() == {5, 9}
    assert found["my_ablation"].effects.keys() == found["my_steering"].effects.keys() == {3, 5}


def test_other_latents_have_no_effects(
    tmp_path: Path, make_interventions: Callable[..., dict[str, Any]]
) -> None:
    make_interventions(tmp_path)
    found = read_analyses(tmp_path, 150, "blocks.2.mlp.pre")
    assert [f.effects for f in found] == [{}] * 4
    assert [bool(f.heads) for f in found] == [False, True, False, False], (
        "of the model, not latents"
    )


def test_heads_have_every_score_in_order(written: Written) -> None:
    scores = written[0]["head_scores"].scores
    heads = written[1]["my_head_scores"].heads
    assert [score["name"] for score in heads["scores"]] == [
        "previous token",
        "induction",
        "entropy",
    ]
    assert [score["unit"] for score in heads["scores"]] == ["attention", "attention", "nats"]
    for shown in heads["scores"]:
        for key in ("score", "low", "high", "p_corrected", "significant"):
            own = getattr(scores[shown["name"].replace(" ", "_")], key)
            np.testing.assert_array_equal(shown[key], own)
