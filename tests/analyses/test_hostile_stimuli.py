"""Stimuli that would harm whoever reads of them go through an analysis, unharmed and inert."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from palinka.analyses.reader import ActivationReader
from palinka.analyses.run import AnalysisEntry, HeatmapEntry, run_analysis

SCRIPT = "</script><img src=x onerror=alert(1)>"
NAMES = (f"../../{SCRIPT}", "$\\frac{x$ \x1b[2J\u202e\0 | `a`\n# b")
WORDS = ["<b>", "=1+2", "👩\u200d🔬", "שלום", "$x_", "a\u202eb", "![x](http://127.0.0.1:9/y)"]
NASTY = f"{SCRIPT} $x_ $ \x85 \u202e 👩\u200d🔬 {{{{ 7*7 }}}}"


@pytest.mark.parametrize(
    ("analysis", "content", "changes"),
    [
        (
            "unit_tuning",
            {"kind": "words", "conditions": dict.fromkeys(NAMES, WORDS)},
            {"options": {"test": "welch"}},
        ),
        (
            "category_score",
            {
                "kind": "passage",
                "text": f"The road to Vienna. {NASTY} and so on to Vienna.",
                "categories": {name: ["Vienna"] for name in NAMES},
            },
            {"heatmaps": HeatmapEntry(by="score")},
        ),
    ],
)
def test_hostile_names_and_texts(
    analysis: str,
    content: dict[str, Any],
    changes: dict[str, Any],
    mini: ActivationReader,
    stimuli: Callable[..., str],
    tmp_path: Path,
) -> None:
    path: Any = stimuli(**content)
    entry = AnalysisEntry("some", analysis, path, "blocks.3.mlp.pre", **changes)
    findings = run_analysis(entry, mini)
    assert all(line.isprintable() for line in findings.report().splitlines())
    output = tmp_path / "deep" / "output"
    folder = findings.write(output)
    assert [*output.parent.iterdir(), *output.iterdir()] == [output, folder]
    json.loads((folder / "findings.json").read_text(encoding="utf-8"))
    svgs = [ElementTree.parse(svg) for svg in folder.glob("*.svg")]
    assert len(svgs) == len(list(folder.glob("*.png"))) > 0
    pages = [page.read_text(encoding="utf-8") for page in folder.glob("*.html")]
    assert len(pages) == (len(NAMES) if "heatmaps" in changes else 0)
    assert not any(re.search(r"<(script|img|a|iframe)\b", page) for page in pages)
