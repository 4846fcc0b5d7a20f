"""What the book's pages refer to is there, which needs none of the packages that build it."""

import importlib
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
REFERENCES = [
    name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
]


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of the book's build."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "book"))
    yield importlib.import_module
    for module in ("figures", "formulas"):
        sys.modules.pop(module, None)


def leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    children = nav.values() if isinstance(nav, dict) else nav
    return [leaf for child in children for leaf in leaves(child)]


def test_every_page_of_the_navigation_is_there() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    for page in leaves(nav):
        assert page == "benchmarks.md" or (DOCS / page).is_file(), page  # which the build makes


@pytest.mark.parametrize("name", REFERENCES)
def test_every_name_of_the_reference_is_there(name: str) -> None:
    thing = pkgutil.resolve_name(name)
    # Of a package of functions the name is the function, and the page shows its module.
    assert thing.__doc__ or sys.modules[name].__doc__


def test_pages_show_figures_of_what_the_build_runs(book: Any) -> None:
    figures = book("figures")
    for name in figures.ANALYSES:
        config = yaml.safe_load((ROOT / "configs" / "analyses" / f"{name}.yaml").read_text())
        # A page finds the figures under the name of the configuration.
        assert name in [entry["name"] for entry in config["analyses"]]
    known = {*figures.ANALYSES, "statistics", "passage/geography", "passage/statistics"}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shown = re.findall(r"\]\((?:\.\./)*figures/([\w/]+)/[\w.-]+\.png\)", text)
        assert {*shown, *re.findall(r"\{\{ findings (\S+)", text)} <= known


def test_figures_are_kept_under_a_key_that_follows_the_code(
    book: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = book("figures")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    code = tmp_path / "src" / "palinka" / "analyses" / "x.py"
    code.parent.mkdir(parents=True)
    code.write_text("1")
    before = figures._key()
    assert figures._key() == before
    code.write_text("2")
    assert figures._key() != before
