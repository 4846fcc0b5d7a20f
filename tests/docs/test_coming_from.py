"""The names that docs/coming-from.md gives for things are names of things."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
PACKAGES = {
    "palinka": "palinka", "sae_lens": "SAELens", "dictionary_learning": "dictionary_learning",
    "sparsify": "sparsify", "transformer_lens": "TransformerLens",
}  # fmt: skip


def words_of(heading: str) -> set[str]:
    """The words within the code spans of one column of all tables that have it."""
    spans: list[str] = []
    for table in re.findall(r"(?:^\| .*\n|^\|-.*\n)+", PAGE, re.MULTILINE):
        head, _, *rows = (line.strip("| \n").split(" | ") for line in table.splitlines())
        if heading in head:
            cells = (row[head.index(heading)] for row in rows)
            spans += (span for cell in cells for span in re.findall("`([^`]+)`", cell))
    return {word for span in spans for word in re.findall(r"\w{2,}", span)}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_occurs_in_its_library(package: str) -> None:
    # Found without being imported: one of them takes half a minute.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    (folder,) = spec.submodule_search_locations
    source = "\n".join(file.read_text(encoding="utf-8") for file in Path(folder).rglob("*.py"))
    words = words_of(PACKAGES[package])
    assert len(words) > 15
    assert words - set(re.findall(r"\w+", source)) == set()
