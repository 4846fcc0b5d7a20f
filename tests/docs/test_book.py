"""What the book's pages refer to is there, which needs none of the packages that build it."""

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from palinka.analyses.run import find_analysis
from palinka.interventions.study import STUDIES, find_study
from palinka.language_models import LanguageModelSpec

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
    for module in ("findings", "formulas"):
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


def test_the_table_of_sites_has_all_of_a_model() -> None:
    page = (DOCS / "reference" / "language_models.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`(.*?)`", cell)]
    named = [f"blocks.{{i}}.attn{name}" if name.startswith(".") else name for name in named]
    sites = LanguageModelSpec("mini").sites.taps
    assert named == list(dict.fromkeys(re.sub(r"\.\d+", ".{i}", site) for site in sites))


def test_the_table_of_settings_is_what_the_studies_take() -> None:
    page = (DOCS / "questions" / "interventions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (`\w+: .*) \|$", page, re.MULTILINE)
    data = {name: getattr(find_analysis(name).function, "takes", "") for name, _ in rows}
    assert {*data.values()} == {*STUDIES}
    for name, settings in rows:
        study = find_study(data[name])
        assert study is not None
        parameters = inspect.signature(study).parameters.values()
        taken = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
        shown = yaml.safe_load("{" + ", ".join(re.findall("`(.*?)`", settings)) + "}")
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in taken.items()}
        assert shown == plain, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_reads_well_without_being_built(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "{{ findings" not in text
    for picture in re.findall(r"!\[[^]]*\]\(([^)#]+)\)", text):
        assert (page.parent / picture).is_file(), picture


def test_pages_show_what_the_script_runs(book: Any) -> None:
    findings = book("findings")
    configs = (ROOT / "configs" / "analyses" / f"{name}.yaml" for name in findings.ANALYSES)
    entries = [each for file in configs for each in yaml.safe_load(file.read_text())["analyses"]]
    known = {*(each["name"] for each in entries), "passage/geography"}
    assert len(known) == len(entries) + 1  # each has a folder of its own
    for page in findings.PAGES:
        text = page.read_text(encoding="utf-8")
        shown = dict(findings.FIGURE.findall(text)) | dict.fromkeys(
            name for name, _, _ in findings.TABLE.findall(text)
        )
        assert shown
        assert shown.keys() <= known
        assert all(len(numbers(table)) > 2 for _, _, table in findings.TABLE.findall(text))
        for name, figure in findings.FIGURE.findall(text):
            assert (findings.IMAGES / name / figure).stat().st_size < 100_000


@pytest.mark.slow
def test_tables_are_what_the_configurations_give(book: Any, tmp_path: Path) -> None:
    findings = book("findings")
    folders = findings.run_all(tmp_path)
    for page in findings.PAGES:
        text = page.read_text(encoding="utf-8")
        # Other processors round otherwise, and permutations of near ties then differ.
        expected = pytest.approx(numbers(findings.with_tables(text, folders)), rel=0.05, abs=0.01)
        assert numbers(text) == expected
        for name, figure in findings.FIGURE.findall(text):
            assert (folders[name] / figure).is_file()


def numbers(text: str) -> dict[str, float]:
    """Numbers of a page's tables of findings by place and name."""
    rows = re.findall(r"^\| `(\S+)` \| ([-+.\de]+) \|$", text, re.MULTILINE)
    return {f"{at} {name}": float(value) for at, (name, value) in enumerate(rows)}
