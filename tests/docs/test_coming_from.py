"""The names that docs/coming-from.md gives for things are names of things."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
PACKAGES = ("palinka", "sae_lens", "dictionary_learning", "sparsify")


def words_of(column: int) -> set[str]:
    """The words within the code spans of one column of all tables."""
    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| ")]
    spans = [span for row in rows for span in re.findall("`([^`]+)`", row[column])]
    return {word for span in spans for word in re.findall(r"\w{2,}", span)}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_occurs_in_its_library(package: str) -> None:
    # Found without being imported: one of them takes half a minute.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    headings = {line for line in PAGE.splitlines() if line.startswith("| palinka")}
    assert headings == {"| palinka | SAELens | dictionary_learning | sparsify |"}
    (folder,) = spec.submodule_search_locations
    source = "\n".join(file.read_text(encoding="utf-8") for file in Path(folder).rglob("*.py"))
    words = words_of(PACKAGES.index(package))
    assert len(words) > 15
    assert words - set(re.findall(r"\w+", source)) == set()
