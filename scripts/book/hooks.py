"""Build hooks of the book, which `mkdocs.yml` names.

- `$…$` and `$$…$$` become MathML.
- The page `benchmarks.md` is made of the tables in `benchmarks/results`.
- A page in `docs/` that `nav` does not list stands in a last section.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from formulas import set_formulas

ROOT = Path(__file__).parents[2]
_RESULTS = re.compile(r"\]\((?:\.\./)+benchmarks/results/(\w+)\.md\)")
_BENCHMARKS = """\
# Benchmark tables

Each table was written by `python benchmarks` on the computer that it names: what the plain
definition takes, what palinka takes, and how closely the two agree. A ratio holds for its
own case and no other.
"""


def on_config(config: Any) -> Any:
    """Give pages that the navigation does not list a section."""
    listed = set(_leaves(config["nav"]))
    docs = Path(config["docs_dir"])
    pages = (page.relative_to(docs).as_posix() for page in sorted(docs.rglob("*.md")))
    if more := [page for page in pages if page not in listed]:
        config["nav"].append({"More": more})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the page of benchmarks."""
    results = [
        re.sub(r"^#", "##", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for file in sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    ]
    benchmarks = "\n".join([_BENCHMARKS, *results])
    files.append(File.generated(config, "benchmarks.md", content=benchmarks))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links to benchmark tables lead to their page."""
    upward = "../" * page.file.src_uri.count("/")
    return _RESULTS.sub(rf"]({upward}benchmarks.md)", markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Set the formulas."""
    return str(set_formulas(html))


def _leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    children = nav.values() if isinstance(nav, dict) else nav
    return [leaf for child in children for leaf in _leaves(child)]
