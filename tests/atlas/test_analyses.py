import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palinka.atlas.analyses import Found, read_analyses, read_explanations

SITE = "blocks.3.mlp.pre"


def test_findings_are_read_with_a_column_for_every_value_of_the_latents(findings: Path) -> None:
    (found,) = read_analyses(findings, 150, SITE)
    assert found.page["name"] == "geography"
    assert set(found.columns) == {"place/score", "place/auc", "place/p_value"}
    stored = np.load(findings / "geography" / "arrays.npz")
    np.testing.assert_array_equal(found.columns["place/auc"], stored["place/auc"])
    assert dict(found.page["scalars"])["place/best"] == stored["place/score"].argmax()
    assert found.page["notes"] == [("place", "a note")]
    settings = dict(found.page["settings"])
    assert settings["stimuli"] == "passage.yaml", "no folders of the machine"
    assert {name: path.name for name, path in found.figures.items()} == {"0-score.png": "score.png"}
    caption = "What it shows. a note"
    assert found.page["figures"] == [{"file": "0-score.png", "title": "score", "caption": caption}]
    tables = {table["name"]: table["rows"] for table in found.page["tables"]}
    assert tables["place-best_latents"][0] == ["rank", "latent", "score", "auc", "p_value"]
    assert found.page["summary"].strip() == "- `x`"


def test_findings_of_other_latents_give_no_columns(findings: Path) -> None:
    for latents, site in ((151, SITE), (150, "blocks.2.mlp.pre")):
        (found,) = read_analyses(findings, latents, site)
        assert found.columns == {}


def test_unreadable_findings_are_left_out_with_a_warning(findings: Path) -> None:
    for name, text in (("broken", "{"), ("list", "[]"), ("empty", "{}")):
        (findings / name).mkdir()
        (findings / name / "findings.json").write_text(text)
    (findings / "latents").mkdir()  # what the rest of the atlas shows
    with pytest.warns(UserWarning, match="has no readable findings"):
        assert [f.page["name"] for f in read_analyses(findings, 150, SITE)] == ["geography"]
    assert read_analyses(findings / "none", 150, SITE) == []


def test_figures_come_in_the_order_in_which_they_were_drawn(findings: Path) -> None:
    record = findings / "geography" / "findings.json"
    captions = {"overview": "All.", "score": "What it shows.", "detail": ""}
    changed = json.loads(record.read_text()) | {"captions": captions}
    record.write_text(json.dumps(changed))
    for name in ("added", "detail", "overview"):
        (findings / "geography" / f"{name}.png").touch()
    (found,) = read_analyses(findings, 150, SITE)
    titles = [figure["title"] for figure in found.page["figures"]]
    assert titles == ["overview", "score", "detail", "added"]


@pytest.mark.parametrize("below", [".", "k=16,seed=1"])
def test_an_evaluation_of_several_dictionaries_gives_columns_of_the_one_of_the_atlas(
    tmp_path: Path, below: str
) -> None:
    whole = tmp_path / "version_0" / "analyses" / "evaluation"
    whole.mkdir(parents=True)
    scalars = {"k=16/auc/past/k=5": 0.7, "k=16/dead": 3}
    record = {"name": "evaluation", "scalars": scalars, "notes": {}}
    (whole / "findings.json").write_text(json.dumps(record))
    known = [{"name": f"k=16,seed={seed}", "sha256": f"{seed}"} for seed in range(2)]
    value = {"metric": "auc", "of": "k=16", "task": "past", "k": 5, "low": 0.6, "high": 0.8}
    dead = {"metric": "dead", "of": "k=16", "task": "", "k": None, "low": None, "high": None}
    written = {"dictionaries": known, "values": [value, dead]}
    (whole / "evaluation.json").write_text(json.dumps(written))
    arrays = {"reappears/k=16,seed=0": np.zeros(3), "reappears/k=16,seed=1": np.array([0, 0.5, 1])}
    np.savez(whole / "arrays.npz", **arrays, **{"best_cosine/k=16,seed=1": np.ones(3)})
    # The analyses of a variant are below its own folder, which need not exist.
    folder = tmp_path / "version_0" / below / "analyses"
    (found,) = read_analyses(folder, 3, SITE, "1")
    shown = {name: rest for name, *rest in found.page["scalars"]}
    assert shown == {"k=16/auc/past/k=5": [0.7, 0.6, 0.8], "k=16/dead": [3.0, None, None]}
    assert found.columns.keys() == {"reappears", "best_cosine"}
    np.testing.assert_array_equal(found.columns["reappears"], arrays["reappears/k=16,seed=1"])
    (other,) = read_analyses(whole.parent, 3, SITE, "of another one")
    assert other.columns == {}


def test_explanations_of_older_versions_have_no_intruder(tmp_path: Path) -> None:
    score = {"value": 0.75, "low": 0.6, "high": 0.9, "n": 50, "missing": 5}
    latent = {"text": "rivers", "model": "m", "controls": {}, "detection": score, "fuzzing": score}
    value = {"metric": "detection", "value": 0.75, "low": None, "high": None, "method": "none: 1"}
    record = {"latent_dim": 3, "site": SITE, "sha256": "", "latents": {"1": latent}, "model": "m"}
    path = tmp_path / "explanations.json"
    path.write_text(json.dumps({**record, "values": [value], "excluded": {}}))
    found = read_explanations(path, 3, SITE)
    numbers = [0.75, 0.6, 0.9, 50, 5]
    assert found.explanations[1]["scores"] == [["detection", *numbers], ["fuzzing", *numbers]]
    assert found.columns["detection"].tolist()[1] == 0.75


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
    names = [score["name"] for score in heads["scores"]]
    assert names == ["Previous token", "Induction", "Entropy"]
    assert [score["unit"] for score in heads["scores"]] == ["attention", "attention", "nats"]
    for shown in heads["scores"]:
        for key in ("score", "low", "high", "p_corrected", "significant"):
            own = getattr(scores[shown["name"].lower().replace(" ", "_")], key)
            np.testing.assert_array_equal(shown[key], own)
