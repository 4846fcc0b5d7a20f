from pathlib import Path

import numpy as np
import pytest

from palinka.atlas.analyses import read_analyses

SITE = "blocks.3.mlp.pre"


def test_findings_are_read_with_a_column_for_every_value_of_the_latents(findings: Path) -> None:
    (found,) = read_analyses(findings, 150, SITE)
    assert found.name == "geography"
    assert set(found.columns) == {"place/score", "place/auc", "place/p_value"}
    stored = np.load(findings / "geography" / "arrays.npz")
    np.testing.assert_array_equal(found.columns["place/auc"], stored["place/auc"])
    assert found.scalars["place/best"] == stored["place/score"].argmax()
    assert found.notes == [("place", "a note")]
    assert found.settings["stimuli"] == "passage.yaml", "no folders of the machine"
    assert [path.name for path in found.figures] == ["score.png"]
    assert found.captions == {"score": "What it shows. a note"}
    assert found.tables["place-best_latents"][0] == ["rank", "latent", "score", "auc", "p_value"]
    assert found.summary.strip() == "- `x`"


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
        assert [found.name for found in read_analyses(findings, 150, SITE)] == ["geography"]
    assert read_analyses(None, 150, SITE) == read_analyses(findings / "none", 150, SITE) == []
