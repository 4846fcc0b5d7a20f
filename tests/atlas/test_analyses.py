import json
from pathlib import Path

import numpy as np
import pytest

from palinka.atlas.analyses import read_analyses, read_explanations

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
    (whole / "findings.json").write_text('{"name": "evaluation", "scalars": {}, "notes": {}}')
    known = [{"name": f"k=16,seed={seed}", "sha256": f"{seed}"} for seed in range(2)]
    (whole / "evaluation.json").write_text(json.dumps({"dictionaries": known}))
    arrays = {"reappears/k=16,seed=0": np.zeros(3), "reappears/k=16,seed=1": np.array([0, 0.5, 1])}
    np.savez(whole / "arrays.npz", **arrays, **{"best_cosine/k=16,seed=1": np.ones(3)})
    # The analyses of a variant are below its own folder, which need not exist.
    folder = tmp_path / "version_0" / below / "analyses"
    (found,) = read_analyses(folder, 3, SITE, "1")
    assert found.columns.keys() == {"reappears", "best_cosine"}
    np.testing.assert_array_equal(found.columns["reappears"], arrays["reappears/k=16,seed=1"])
    (other,) = read_analyses(whole.parent, 3, SITE, "of another one")
    assert other.columns == {}


def test_explanations_of_older_versions_have_no_intruder(tmp_path: Path) -> None:
    score = {"value": 0.75, "low": 0.6, "high": 0.9, "n": 50}
    latent = {"text": "rivers", "model": "m", "controls": {}, "detection": score, "fuzzing": score}
    value = {"metric": "detection", "value": 0.75, "low": None, "high": None, "method": "none: 1"}
    record = {"latent_dim": 3, "site": SITE, "sha256": "", "latents": {"1": latent}, "model": "m"}
    path = tmp_path / "explanations.json"
    path.write_text(json.dumps({**record, "values": [value], "excluded": {}}))
    found = read_explanations(path, 3, SITE)
    assert [name for name, *_ in found.explanations[1]["scores"]] == ["detection", "fuzzing"]
    assert found.columns["detection"].tolist()[1] == 0.75
