"""The book builds without a warning, and shows itself in a browser that has no network."""

import logging
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the group docs is not installed")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book, built strictly."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.utils import CountHandler

    folder = tmp_path_factory.mktemp("site")
    warnings = CountHandler()
    warnings.setLevel(logging.WARNING)
    logging.getLogger("mkdocs").addHandler(warnings)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts" / "book"))
        patch.chdir(ROOT)
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
        config.plugins.on_shutdown()
    for module in ("formulas", "hooks"):
        sys.modules.pop(module, None)
    logging.getLogger("mkdocs").removeHandler(warnings)
    assert warnings.get_counts() == [], warnings.get_counts()
    return folder


def test_every_page_is_built_and_whole(site: Path) -> None:
    pages = {page.relative_to(ROOT / "docs").with_suffix("") for page in ROOT.glob("docs/**/*.md")}
    built = {page.relative_to(site).with_suffix("") for page in site.rglob("*.html")}
    assert pages <= built
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "arithmatex" not in text
    assert "<math" in (site / "autoencoder.html").read_text(encoding="utf-8")
    assert "31,125 pairs" in (site / "benchmarks.html").read_text(encoding="utf-8")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_browser_needs_no_network(site: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    requests, errors = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append((message.type, message.text)))
        page.on("pageerror", lambda error: errors.append(("error", str(error))))
        # The page for what is not found is a server's, with addresses from its root.
        for path in sorted({*site.rglob("*.html")} - {site / "404.html"}):
            page.goto(path.as_uri())
            broken = "Array.from(document.images).filter(i => !i.naturalWidth).map(i => i.src)"
            assert page.evaluate(broken) == [], path
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        browser.close()
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert [error for error in errors if error[0] == "error"] == []
