"""Stimuli that would harm whoever reads of them go through an analysis, unharmed and inert."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from palinka.analyses.reader import ActivationReader
from palinka.analyses.run import AnalysisEntry, HeatmapEntry, run_analysis

SITE = "blocks.3.mlp.pre"
SCRIPT = "</script><img src=x onerror=alert(1)>"
NAMES = (f"../../{SCRIPT}", "$\\frac{x$ \x1b[2J\u202e\0 | `a`\n# b")
WORDS = ("<b>", "=1+2", "👩\u200d🔬", "שלום", "$x_", "a\u202eb", "![x](http://127.0.0.1:9/y)")


class Tags(HTMLParser):
    """Collects the names of tags."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.seen.add(tag)


@pytest.fixture
def written(
    mini: ActivationReader, stimuli: Callable[..., str], tmp_path: Path
) -> Callable[..., Path]:
    """Runs an analysis, and gives the folder of what was written."""

    def run(analysis: str, path: str, **changes: object) -> Path:
        entry = AnalysisEntry("some", analysis, path, SITE, **changes)  # type: ignore[arg-type]
        findings = run_analysis(entry, mini)
        assert all(line.isprintable() for line in findings.report().splitlines())
        output = tmp_path / "deep" / "output"
        folder = findings.write(output)
        assert [path.name for path in output.iterdir()] == ["some"]
        assert [path.name for path in output.parent.iterdir()] == ["output"]
        for svg in folder.glob("*.svg"):
            ElementTree.parse(svg)
        json.loads((folder / "findings.json").read_text(encoding="utf-8"))
        return folder

    return run


def test_hostile_names_of_conditions(
    written: Callable[..., Path], stimuli: Callable[..., str]
) -> None:
    path = stimuli(kind="words", conditions={name: list(WORDS) for name in NAMES})
    folder = written("unit_tuning", path, options={"test": "welch"})
    assert len(list(folder.glob("*.png"))) == len(list(folder.glob("*.svg"))) > 0


def test_hostile_names_of_categories_and_tokens(
    written: Callable[..., Path], stimuli: Callable[..., str]
) -> None:
    nasty = f"{SCRIPT} $x_ $ \x85 \u202e 👩\u200d🔬 {{{{ 7*7 }}}}"
    text = f"The road to Vienna. {nasty} and so on to Vienna."
    path = stimuli(kind="passage", text=text, categories={name: ["Vienna"] for name in NAMES})
    folder = written("category_score", path, heatmaps=HeatmapEntry(by="score"))
    assert len(list(folder.glob("*.csv"))) == len(NAMES)
    pages = list(folder.glob("*.html"))
    assert len(pages) == len(NAMES)
    for page in pages:
        tags = Tags()
        tags.feed(page.read_text(encoding="utf-8"))
        assert not tags.seen & {"script", "img", "a", "iframe"}
