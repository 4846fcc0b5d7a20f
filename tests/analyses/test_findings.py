import csv
import json
import unicodedata
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

import palinka
from palinka.analyses.findings import Findings, file_names
from palinka.analyses.result import Result, Table
from palinka.errors import InputError


@dataclass(frozen=True)
class Small(Result):
    """Two numbers, one of them missing, and an array."""

    score: float
    missing: float
    values: NDArray[np.float64]
    nothing: NDArray[np.float64] | None = None

    def tables(self) -> dict[str, Table]:
        return {"units": {"unit": [0, 1], "value": self.values}}


def findings(**changes: Any) -> Findings:
    result = Small(0.5, float("nan"), np.array([1.5, -2.0]), notes=("one unit is silent",))
    arguments: dict[str, Any] = {
        "name": "some-name",
        "results": {"hidden.1/comma": result},
        "figures": {"spectrum": Figure()},
        "pages": {"heatmap": "<p>x</p>"},
        "settings": {"sites": ["hidden.1"], "file": "bytes-\udcff.yaml"},
        "summary": "12 matches",
    }
    return Findings(**{**arguments, **changes})


def test_everything_is_written_under_its_name(tmp_path: Path) -> None:
    folder = findings().write(tmp_path / "out")
    assert folder == tmp_path / "out" / "some-name"
    assert {path.name for path in folder.iterdir()} == {
        "arrays.npz", "findings.json", "heatmap.html", "hidden.1-comma-units.csv", "spectrum.png",
        "spectrum.svg", "stimuli.md",
    }  # fmt: skip
    record = json.loads((folder / "findings.json").read_text())
    assert record["scalars"] == {"hidden.1/comma/score": 0.5, "hidden.1/comma/missing": None}
    assert record["notes"] == {"hidden.1/comma": ["one unit is silent"]}
    assert record["settings"] == {"sites": ["hidden.1"], "file": "bytes-\udcff.yaml"}
    assert record["palinka"] == palinka.__version__
    arrays = np.load(folder / "arrays.npz")
    assert arrays.files == ["hidden.1/comma/values"]
    assert arrays["hidden.1/comma/values"].tolist() == [1.5, -2.0]
    table = (folder / "hidden.1-comma-units.csv").read_text()
    assert table.split() == ["unit,value", "0,1.5", "1,-2.0"]


def test_captions_travel_with_figures(tmp_path: Path) -> None:
    figure = Figure()
    figure.set_label("Where <it> rises.\x1b")
    folder = findings(figures={"a/b": figure, "plain": Figure()}).write(tmp_path)
    captions = json.loads((folder / "findings.json").read_text())["captions"]
    assert captions == {"a-b": "Where <it> rises.\\x1b", "plain": ""}
    assert Image.open(folder / "a-b.png").info["Description"] == captions["a-b"]
    assert "Where &lt;it&gt; rises." in (folder / "a-b.svg").read_text()


def test_earlier_findings_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    findings(figures={"old": Figure()}).write(tmp_path)
    folder = findings().write(tmp_path)
    assert not (folder / "old.png").exists()

    class Broken(Figure):
        def savefig(self, *_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left on device"):
        findings(figures={"other": Broken()}).write(tmp_path)
    assert list(tmp_path.iterdir()) == [folder]
    assert (folder / "spectrum.png").exists()


def test_the_report_and_the_markdown_show_numbers_and_remarks() -> None:
    small = Small(0.5, 0.25, np.zeros(200))
    assert repr(small) == "Small(score=0.5, missing=0.25, values=(200,), nothing=None)"
    assert repr(findings(results={"": small})) == (
        "Findings(some-name: score 0.5, missing 0.25; no test, no p-value)"
    )
    fields = [("first", float), ("second", float), ("best_p_value", float)]
    tested = make_dataclass("Tested", fields, bases=(Result,), frozen=True)(1.0, 2.0, 0.01)
    assert findings(results={"": tested}).headlines(2) == ["some-name: first 1, best p 0.01"]
    ranked = {"best": 1630, "best_p_value": 0.994, "auc": 0.9961, "auc_p_value": 0.001, "l0": 2.5}
    typed = [(name, float) for name in ranked]
    units = {"scalar_units": {"l0": "{} per token", "best": "({2} over {1})"}}
    named = make_dataclass("Ranked", typed, bases=(Result,), namespace=units, frozen=True)
    parts = {"a": named(**ranked, notes=("shifted",)), "b": named(**ranked)}
    assert findings(results=parts, settings={"units": "units"}).report(5).splitlines()[1:] == [
        "  a/auc           0.9961", "  a/auc_p_value   0.001", "  a/best          1630 (b over a)",
        "  a/best_p_value  0.994 (not significant)", "  a/l0            2.5 units per token",
        "  … and 5 more in findings.json", "  note: a: shifted",
    ]  # fmt: skip
    several = {"effect": 2.0, "matched_p_value": 0.2, "isotropic_p_value": 0.01}
    fields = [(name, float) for name in several]
    controlled = make_dataclass("Controlled", fields, bases=(Result,), frozen=True)(**several)
    lines = findings(results={"": controlled}).report().splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(several)
    (line, _) = findings(results=parts).headlines(4)
    numbers = "auc 0.9961, auc p 0.001, best 1630 (b over a), best p 0.994 (not significant)"
    assert line == f"some-name/a: {numbers}"
    fields = [("best_p_value", float), ("level", float)]
    leveled = make_dataclass("Leveled", fields, bases=(Result,), frozen=True)
    for level, found in ((0.9, "p 0.1"), (0.95, "p 0.1 (not significant)")):
        (line,) = findings(results={"": leveled(0.1, level)}).headlines()
        assert line == f"some-name: best {found}, level {level}"
    many = findings(results=dict.fromkeys("abcdef", small)).headlines(most=1)
    assert many[0] == "some-name/a: score 0.5; no test, no p-value"
    assert findings(results={"": small}).report().startswith("some-name: no test, no p-value\n")
    assert many[4:] == ["some-name: … and 2 more in findings.json"]
    report, markdown = findings().report(most=1), findings().markdown()
    assert "hidden.1/comma/score  0.5" in report
    assert "1 more in findings.json" in report
    assert "note: one unit is silent" in report
    assert "| `hidden.1/comma/score` | 0.5 |" in markdown
    assert "- `hidden.1/comma`: `one unit is silent`" in markdown
    assert markdown.endswith("12 matches")


def test_a_spreadsheet_calculates_nothing(tmp_path: Path) -> None:
    texts = ["=1+2", "+cmd|' /C calc'!A0", "@SUM(A1)", " =1", "-2+3", "-", "a=b", "1", "é\x00"]

    @dataclass(frozen=True)
    class Named(Result):
        def tables(self) -> dict[str, Table]:
            return {"items": {"item": texts, "value": np.arange(-1.0, len(texts) - 1)}}

    folder = findings(results={"": Named()}).write(tmp_path)
    with (folder / "items.csv").open(encoding="utf-8") as stream:
        rows = list(csv.reader(stream))[1:]
    assert [row[0] for row in rows] == [
        "'=1+2", "'+cmd|' /C calc'!A0", "'@SUM(A1)", "' =1", "'-2+3", "-", "a=b", "1", r"é\x00",
    ]  # fmt: skip
    assert rows[0][1] == "-1.0"


def test_plain_names_stay_readable() -> None:
    names = ["hidden.1/comma/units", "Straße", "日本", "a b"]
    expected = ["hidden.1-comma-units", "Straße", "日本", "a-b"]
    assert file_names(names) == dict(zip(names, expected, strict=True))


@given(st.lists(st.text(st.characters(exclude_categories=())), unique=True))
@example(["a b", "a-b", "a/b", "Comma", "comma", "é", "e\u0301", "ß", "ss", ".", "..", ""])
@example(["../../out", "/abs", "n" * 200, "n" * 201, "é" * 200])
def test_every_name_has_a_harmless_file_of_its_own(names: list[str]) -> None:
    files = file_names(names)
    assert list(files) == names
    folded = {unicodedata.normalize("NFC", file).casefold() for file in files.values()}
    assert len(folded) == len(names)
    assert all(files[name] == file_names([name])[name] for name in names[:1])
    for file in files.values():
        assert all(c.isalnum() or c in "-_." for c in file)
        assert 0 < len(file.encode()) < 200
        assert file.strip(".")
