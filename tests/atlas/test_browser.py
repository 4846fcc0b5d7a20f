"""The atlas in a real browser: what a reader does, and what no text may ever do."""

import io
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from palinka.atlas import AtlasServer, write_site
from palinka.atlas.analyses import read_analyses
from palinka.atlas.site import About

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

LATENTS = 300
ADDRESSES = ("", "#latent=3", "#analysis=0", "#heads=2", "#against", "#text")
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, make_facts: Make, make_findings: Make,
    make_interventions: Make, about: About,
) -> Path:  # fmt: skip
    """A site of ordinary latents, with findings and another dictionary."""
    folder = tmp_path_factory.mktemp("site")
    make_interventions(folder / "found")
    found = read_analyses(make_findings(folder / "found", LATENTS), LATENTS, about.site)
    return write_site(folder / "atlas", make_facts(LATENTS, against=True), about, found)


@pytest.fixture
def visit(browser: Any) -> Iterator[Make]:
    """Opens an address; the page may neither complain nor ask any host."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    for event in ("console", "pageerror", "requestfailed"):
        page.on(event, lambda what: complaints.append(str(what)))

    def go(address: str, title: str = "Overview") -> Any:
        page.goto(address)
        heading(page, title)
        return page

    yield go
    context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:///", "http://127.0.0.1:"))] == []


@pytest.fixture
def page(visit: Make, site: Path) -> Any:
    """The overview."""
    return visit(site.as_uri())


def heading(page: Any, name: str) -> None:
    page.get_by_role("heading", name=name, level=1, exact=True).wait_for()


def count(page: Any, text: str) -> None:
    page.get_by_text(text, exact=True).wait_for()


def until(page: Any, expression: str) -> None:
    """Wait until it is true; the browser's own waiting would evaluate text, which the site bans."""
    deadline = time.monotonic() + 20.0
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)


def values(page: Any, key: str) -> np.ndarray:
    return np.array(page.evaluate("key => Array.from(palinka.selection.values(key))", key), float)


def share(values: np.ndarray) -> np.ndarray:
    """Place along a logarithmic axis, with three parts in a hundred to spare at both ends."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(values > 0, np.log10(values), np.nan)
    low, high = np.nanmin(logs), np.nanmax(logs)
    margin = 0.03 * (high - low)
    return np.asarray((logs - low + margin) / (high - low + 2 * margin))


def test_the_overview_says_what_was_measured(page: Any) -> None:
    metrics = page.locator(".metrics").inner_text()
    assert "variance unexplained (FVU)" in metrics
    assert "10.9 %" in metrics
    assert "0.025 to 0.035" in metrics
    assert (
        "over the 32 documents"
        in page.locator("section", has=page.locator(".metrics")).inner_text()
    )
    assert page.locator("canvas").count() == 3
    for label in page.locator("canvas").evaluate_all("all => all.map(c => c.ariaLabel)"):
        assert "299 latents" in label, "the dead one has no density"
    assert page.locator(".count").inner_text() == "300 latents"
    assert page.title() == "Overview · feature atlas of mini"
    # The table holds only rows in sight.
    assert page.locator(".latents tbody tr").count() < 60
    assert page.locator(".latents").get_attribute("aria-rowcount") == "301"
    page.locator(".scroller").evaluate("element => element.scrollTop = element.scrollHeight")
    row = page.locator(".latents tbody tr", has=page.locator("a", has_text="299"))
    row.wait_for()
    assert row.get_attribute("aria-rowindex") == "301"


def test_a_column_sorts_both_ways_with_the_dead_at_the_end(page: Any) -> None:
    activation = values(page, "activation")
    for way, keys in (("descending", -activation), ("ascending", activation)):
        page.get_by_role("button", name="mean").click()
        assert page.locator("#tooltip").inner_text() == "mean where it is active\nactivation"
        order = np.argsort(keys, kind="stable").tolist()  # NaN comes last
        until(page, f"document.querySelector('.latents tbody a').text == {order[0]}")
        shown = page.locator(".latents tbody th a").all_inner_texts()
        assert [int(text) for text in shown[:5]] == order[:5]
        assert "mean" in page.locator(f"th[aria-sort={way}]").inner_text()
        assert page.evaluate("Array.from(palinka.selection.order())") == order
        assert order[-1] == 7


def test_filters_narrow_the_table_and_are_taken_back(page: Any) -> None:
    dense, low = values(page, "density") >= 0.5, values(page, "geography/place/score") <= 1.5
    for key, label, bound, kept in (
        ("density", "from", "0.5", dense),
        ("geography/place/score", "to", "1.5", dense & low),
    ):
        page.get_by_label("Keep").select_option(key)
        page.get_by_label(label, exact=True).fill(bound)
        page.get_by_role("button", name="Filter", exact=True).click()
        count(page, f"{kept.sum()} of 300 latents")
    page.get_by_role("button", name=re.compile("Take back the filter density")).click()
    page.get_by_role("button", name="Show all").click()
    count(page, "300 latents")


@pytest.mark.parametrize("plot", [0, 1], ids=["histogram", "scatter"])
def test_brushing_selects_what_was_brushed(page: Any, plot: int) -> None:
    box = page.locator(".plot").nth(plot).bounding_box()
    left, top = box["x"] + 60, box["y"] + 10
    width, height = box["width"] - 72, box["height"] - 50
    page.mouse.move(left + 0.5 * width, top + 0.7 * height)
    page.mouse.down()
    page.mouse.move(left + 0.6 * width, top + 0.6 * height)
    page.mouse.move(left + width + 30, top + 0.2 * height)
    assert page.locator(".brush").nth(plot).is_visible()
    page.mouse.up()
    page.get_by_text(re.compile(r"^\d+ of 300 latents$")).wait_for()
    with np.errstate(invalid="ignore"):
        inside = share(values(page, "density")) >= 0.5
        if plot == 1:
            activation = share(values(page, "activation"))
            inside &= (activation >= 0.3) & (activation <= 0.8)
    found = page.evaluate("Array.from(palinka.selection.order())")
    # A pixel is a three-hundredth of the way.
    assert abs(len(found) - inside.sum()) <= 4
    assert len(found) > 20
    assert len(set(found) ^ set(np.flatnonzero(inside).tolist())) <= 4
    page.keyboard.press("Tab")
    page.locator(".plot").nth(plot).press("Escape")
    count(page, "300 latents")


def test_a_click_in_the_scatter_opens_the_nearest_latent(page: Any) -> None:
    page.locator(".plot").nth(1).scroll_into_view_if_needed()
    density, activation = share(values(page, "density")), share(values(page, "activation"))
    alone = int(np.nanargmax(activation))
    frame = page.locator(".plot").nth(1).bounding_box()
    x = frame["x"] + 60 + density[alone] * (frame["width"] - 72)
    y = frame["y"] + 10 + (1 - activation[alone]) * (frame["height"] - 50)
    page.mouse.move(x, y)
    assert page.locator("#tooltip").inner_text().startswith(f"latent {alone}")
    page.mouse.click(x, y)
    heading(page, f"Latent {alone}")


def test_search_finds_numbers_words_and_tokens(page: Any) -> None:
    page.keyboard.press("/")
    page.keyboard.type("211")
    page.locator("#results li").first.wait_for()
    assert page.locator("#results li b").first.inner_text() == "211"
    page.keyboard.press("Enter")
    heading(page, "Latent 211")
    assert page.url.endswith("#latent=211")

    page.locator("#search").fill("WORD17")
    page.get_by_text(re.compile("Show [0-9]+ latents in the table")).wait_for()
    group = page.locator("#results .group").first.inner_text()
    assert group.split() == ["at", "word17", "1", "occurrence", "in", "the", "text"]
    first = page.locator("#results [role=option]").first.inner_text()
    assert re.fullmatch(r"5\s+word17 · .*\s+mean 50 · max 50", first, re.DOTALL)
    page.keyboard.press("ArrowUp")
    selected = page.locator("#results [aria-selected=true]")
    (expected,) = map(int, re.findall(r"\d+", selected.inner_text()))
    active = page.locator("#search").get_attribute("aria-activedescendant")
    assert active == selected.get_attribute("id")
    page.keyboard.press("Enter")
    count(page, f"{expected} of 300 latents")
    for typed, begin in (
        ("word3", ["word3", "word30"]),
        ("word39s", ["word39"]),
        ("word3 word17", ["word3", "word17"]),
    ):
        page.locator("#search").fill(typed)
        until(
            page, f"document.querySelector('#results .group bdi').innerText.trim() == '{begin[0]}'"
        )
        groups = page.locator("#results .group bdi").all_inner_texts()
        assert [text.strip() for text in groups][: len(begin)] == begin
    page.locator("#search").fill("nothing is called so")
    page.locator("#results .nothing").wait_for()
    assert (
        "“nothing” does not occur in the 12,345 measured" in page.locator("#results").inner_text()
    )
    page.keyboard.press("Escape")
    assert not page.locator("#results").is_visible()


def test_a_latents_page(visit: Make, site: Path, make_facts: Make) -> None:
    facts = make_facts(LATENTS)
    page = visit(f"{site.as_uri()}#latent=3", "Latent 3")
    contexts = page.locator(".texts > .contexts > li")
    assert contexts.count() == 4
    assert contexts.first.locator(".value").inner_text() == "99"
    assert page.locator(".texts section h3").all_inner_texts() == [
        "Percentiles 67 to 100 of its activations", "Percentiles 33 to 67 of its activations",
        "Percentiles 0 to 33 of its activations",
    ]  # fmt: skip
    # Each token of the first text, with its shade and what it tells.
    tokens = facts.top.tokens[3, 0]
    spans = contexts.first.locator(".token")
    assert spans.count() == (tokens >= 0).sum()
    shades = spans.evaluate_all("all => all.map(s => Number(s.style.getPropertyValue('--a')))")
    activations = facts.top.activations[3, 0][tokens >= 0]
    expected = np.where(activations > 0, 0.12 + 0.88 * activations / 99.0, 0.0)
    np.testing.assert_allclose(shades, expected, atol=2e-3)
    contexts.first.locator(".peak").hover()
    assert f"99 · id {tokens[15]}" in page.locator("#tooltip").inner_text()
    rows = page.locator(".facts .card", has_text="Numbers").locator("tbody tr")
    assert rows.filter(has_text="max").inner_text().split("\t")[1:] == ["99", "1 of 299"]
    assert page.locator(".facts svg").get_attribute("aria-label").startswith("Histogram of ")
    steering = page.locator(".facts .card", has_text="and steering").locator("tbody tr")
    norm, whole = 20.0, float(steering.last.locator("td").first.inner_text())
    assert whole == pytest.approx(norm / facts.lengths[3], rel=0.01)
    sizes = [row.split("\t")[1:] for row in steering.all_inner_texts()]
    assert (sizes[0][1], sizes[2][0], sizes[4][2]) == ("1", "99", "100")
    counts, width = facts.histogram.counts[3], facts.histogram.width[3]
    middle = np.searchsorted(counts.cumsum(), counts.sum() / 2) + 0.5
    assert abs(float(sizes[0][0]) / width - middle) <= 0.6
    text = page.locator(".texts .tokens").first
    text.focus()
    page.keyboard.press("ArrowRight")
    assert ": 99 · id " in page.locator("#status").inner_text()
    assert "peak" in text.locator(".current").get_attribute("class")
    page.keyboard.press("ArrowLeft")
    assert page.url.endswith("#latent=3"), "the arrows are the text's while it has the focus"
    assert "peak" not in (text.locator(".current").get_attribute("class") or "")
    page.locator(".near a").first.click()
    heading(page, f"Latent {facts.report.near.latents[3, 0]}")


def test_keys_go_from_latent_to_latent_in_the_tables_order(page: Any) -> None:
    page.get_by_role("button", name="max", exact=True).click()
    order = page.evaluate("Array.from(palinka.selection.order())")
    assert order[0] == 3
    page.locator(".scroller").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    heading(page, f"Latent {order[1]}")
    for key, place in (("ArrowRight", 2), ("j", 3), ("ArrowLeft", 2), ("k", 1), ("k", 0), ("k", 0)):
        page.keyboard.press(key)
        heading(page, f"Latent {order[place]}")
    assert page.locator(".steps").inner_text().split("\n")[1] == "1 of 300"
    page.keyboard.press("o")
    heading(page, "Overview")
    page.go_back()
    heading(page, f"Latent {order[0]}")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()


def test_two_dictionaries_side_by_side(visit: Make, site: Path, make_facts: Make) -> None:
    found = make_facts(LATENTS, against=True).against
    page = visit(f"{site.as_uri()}#against", "Two dictionaries")
    text = page.locator("main").inner_text()
    assert "matched one-to-one" in text
    assert "By chance 1 % of the latents have a match" in text
    assert "here 100 % have" in text
    page.get_by_label("Order").select_option("smallest cosine first")
    pairs = found.matches.pairs[::-1]
    rows = page.locator("tbody").first.locator("tr")
    shown = [[rows.nth(i).locator(tag).inner_text() for tag in ("a", "b")] for i in range(3)]
    assert np.array(shown, int).tolist() == pairs[:3].tolist()
    assert rows.count() == 100
    page.get_by_role("button", name="Show 100 more").first.click()
    assert rows.count() == 200
    page.goto(f"{site.as_uri()}#latent={pairs[0, 0]}")
    assert f"Latent {pairs[0, 1]}, cosine 1" in page.locator(".match").inner_text()


def test_a_dead_latent_and_an_address_that_leads_nowhere(visit: Make, site: Path) -> None:
    page = visit(f"{site.as_uri()}#latent=7", "Latent 7")
    assert "active at no token" in page.locator("main").inner_text()
    for address in ("#latent=300", "#latent=99999999999", "#analysis=9", "#<img src=x>"):
        page.goto(site.as_uri() + address)
        heading(page, "Not there")


def test_the_largest_score_is_the_first_and_a_p_value_has_no_rank(page: Any) -> None:
    for name, rank in (("p_value", "\N{EN DASH}"), ("score", "1 of 300")):
        key = f"geography/place/{name}"
        label = page.evaluate(
            "key => palinka.overview.columns.find((column) => column.key === key).label", key
        )
        latent = int(np.nanargmax(values(page, key)))
        page.goto(f"{page.url.partition('#')[0]}#latent={latent}")
        heading(page, f"Latent {latent}")
        row = page.get_by_role("row", name=re.compile(re.escape(label)))
        assert row.first.inner_text().split("\t")[-1].strip() == rank


def test_an_analysis_has_a_page(page: Any) -> None:
    page.get_by_role("navigation").get_by_role("link", name="geography").click()
    heading(page, "geography")
    link = page.get_by_role("navigation").get_by_role("link", name="geography")
    letter = "link => getComputedStyle(link, '::first-letter').textTransform"
    assert link.evaluate(letter) == "none", "names are as typed"
    assert page.evaluate("[7, 61, 61.5, 123].map(palinka.number)") == ["7", "61", "61.5", "123"]
    text = page.locator("main").inner_text()
    assert "place: a note" in text
    labels = page.locator(".metrics dt").all_inner_texts()
    assert labels[0] == "place: best latent by AUC", "before the score"
    for name in ("AUC", "score"):
        label = page.get_by_text(f"place: best latent by {name}", exact=True)
        number = page.locator(".metrics div", has=label)
        assert number.locator("dd").inner_text() == number.locator("a").inner_text()
    assert "passage.yaml" in text
    assert "secret" not in text
    until(page, "document.querySelector('img').complete")
    assert page.locator("img").evaluate("image => image.naturalWidth") > 0
    shown = page.locator("img").get_attribute("alt")
    assert "Figure “score” of the analysis geography" in shown
    assert "What it shows." in shown
    assert "What it shows." in page.locator("figcaption").inner_text()
    page.locator("summary").first.click()
    page.locator("details td a").first.click()
    page.get_by_role("heading", name=re.compile(r"^Latent \d+$")).wait_for()


def test_a_latent_has_the_effects_of_interventions_on_it(visit: Make, site: Path) -> None:
    page = visit(f"{site.as_uri()}#latent=5", "Latent 5")
    card = page.locator(".card", has=page.get_by_role("heading", name="Effects on predictions"))
    assert card.locator("caption a").all_inner_texts() == [
        "my_ablation",
        "my_lesion",
        "my_steering",
    ]
    rows = card.locator("table").last.locator("tbody tr")
    assert rows.nth(0).inner_text().split("\t")[1:] == ["not reached", "", ""]
    assert re.fullmatch(r"slope\t[^\t]+\t\S+ to \S+\t", rows.nth(2).inner_text())
    assert re.fullmatch(r"against isotropic\t\t\t[\d.]+", rows.nth(3).inner_text())
    card.get_by_role("link", name="my_lesion").click()
    heading(page, "my_lesion")
    page.goto(f"{site.as_uri()}#latent=4")
    heading(page, "Latent 4")
    assert page.get_by_role("heading", name="Effects on predictions").count() == 0


def test_heads_have_maps_and_a_table_that_sorts(page: Any) -> None:
    page.locator(".analyses").get_by_role("link", name="all heads").click()
    heading(page, "Attention heads")
    found = page.evaluate("palinka.load('heads-2')")["scores"]
    assert page.locator(".map rect").count() == 6 * len(found) == 18
    induction = np.array(found[1]["score"])
    order = [f"L{i // 3}H{i % 3}" for i in np.argsort(-induction, axis=None, kind="stable")]
    names = page.locator(".heads tbody th")
    for shown in (order, order[::-1]):
        page.locator(".heads").get_by_role("button", name="induction").click()
        assert names.all_inner_texts() == shown
    rect = page.locator(".map").nth(1).locator("rect[x='1'][y='0']")
    rect.hover()
    tip = page.locator("#tooltip").inner_text().split("\n")
    rect.click()
    assert names.all_inner_texts() == order
    assert page.locator(".heads .active th").inner_text() == "L1H1"
    cell = page.locator(".heads .active td").nth(1).inner_text().split("\n")
    assert float(cell[0]) == pytest.approx(induction[1, 1], abs=5e-4)
    assert tip == [f"L1H1: {cell[0]} attention", *cell[1:]]
    assert (" to " in cell[1], cell[2][:2]) == (True, "p ")


def test_search_lists_whole_tokens_before_others(page: Any) -> None:
    page.evaluate("""async () => {
        palinka.selection.labels ?? await palinka.selection.loadLabels();
    }""")
    shown, raised = (page.evaluate(f"palinka.load('{n}')") for n in ("labels", "promoted"))

    def rank(latent: int) -> int:
        words = shown[latent].split(" · "), raised[latent].split(" ")
        ways = (str.__eq__, str.startswith, str.__contains__)
        found = [any(way(w, "word3") for w in of) for way in ways for of in words]
        return [*found, True].index(True)

    ranks = [rank(latent) for latent in range(LATENTS)]
    expected = sorted((i for i in range(LATENTS) if ranks[i] < 6), key=lambda i: (ranks[i], i))
    assert len({ranks[i] for i in expected}) > 2
    assert page.evaluate("palinka.selection.find('Word3 ')") == expected
    reasons = page.evaluate("all => all.map((i) => palinka.selection.reason(i, 'word3'))", expected)
    assert [bool(reason) for reason in reasons] == [ranks[i] % 2 == 1 for i in expected]


# What a tokenizer may hold, and what must never be more than text.
HOSTILE = [
    b"<script>window.hacked=1</script>", b"<img src=x onerror=window.hacked=1>",
    b"</script><script>window.hacked=1</script>", "\u202egnp.exe\u200f".encode(),
    "\u2028\u2029".encode(), b"\x00\x07\x1b[31m", b"\xf0\x9f", b"\x98\x80",
    b'"]);window.hacked=1;//', b"${window.hacked=1}{{constructor}}",
    b"javascript:window.hacked=1", b"\\u003cscript\\u003e", "שלום".encode(),
]  # fmt: skip
BYTES = {"⟨F0 9F⟩", "⟨98 80⟩", "⟨U+2028⟩⟨U+2029⟩"}  # tokens that tell a reader nothing


def test_hostile_texts_stay_texts(
    visit: Make, tmp_path: Path, make_facts: Make, make_findings: Make
) -> None:
    markup = "<img src=x onerror=window.hacked=1>"
    facts = make_facts(40, HOSTILE)
    folder = make_findings(tmp_path / "found", 40, part=markup, remark=f"</script>{markup}")
    (folder / "geography" / "stimuli.md").write_text(f"{markup}<script>window.hacked=1</script>")
    about = About(markup, f"{markup}.site", "</title><script>window.hacked=1</script>", {})
    found = read_analyses(folder, 40, "blocks.3.mlp.pre")
    page = visit(write_site(tmp_path / "atlas", facts, about, found).as_uri())
    assert markup in page.locator("body").inner_text()
    page.locator("#search").fill("<script>")
    page.locator("#results li b").first.wait_for()
    page.keyboard.press("Escape")
    folded: set[str] = set()
    for latent in (0, 5, 13):
        page.goto(f"{page.url.partition('#')[0]}#latent={latent}")
        heading(page, f"Latent {latent}")
        for span in page.locator(".token").all()[:9]:
            span.dispatch_event("pointerover")
        shown = page.locator("main").inner_text()
        for sign in "\u202e\u200f\u2028\u2029\x00\x07\x1b":
            assert sign not in shown, "what turns or hides text is spelled out"
        assert "⟨U+202E⟩" in shown
        assert not BYTES & set(page.locator(".both > div > table bdi").all_text_contents())
        folded |= set(page.locator(".both details bdi").all_text_contents())
        assert "</script><script>" in shown
    assert folded & BYTES == folded != set()
    page.goto(f"{page.url.partition('#')[0]}#analysis=0")
    heading(page, "geography")
    assert f"</script>{markup}" in page.locator("main").inner_text()
    assert page.locator("img").count() == 1, "the figure"
    assert page.locator("main script, [onerror]").count() == 0
    assert page.evaluate("window.hacked") is None


def test_the_policy_would_stop_markup_that_got_in(browser: Any, site: Path) -> None:
    with browser.new_page() as page:
        blocked: list[str] = []
        page.on("console", lambda message: blocked.append(message.text))
        page.goto(site.as_uri())
        page.evaluate("""() => {
            document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.hacked=1'>");
            const [script, far] = [1, 2].map(() => document.createElement("script"));
            script.textContent = "window.hacked = 2";
            far.src = "https://example.invalid/x.js";
            document.body.append(script, far);
            new Image().src = "https://example.invalid/x.png";
            fetch("https://example.invalid/").catch(() => {});
        }""")
        page.wait_for_timeout(200)
        assert page.evaluate("window.hacked") is None
        refused = [text for text in blocked if "Content Security Policy" in text]
        for kind in ("inline event handler", "inline script", "x.js", "x.png", "connect-src"):
            assert any(kind in text for text in refused), (kind, blocked)


class Answers:
    """Stands for the model: three tokens, one of them hostile, and two latents."""

    def answer(self, text: str, latent: int | None = None) -> dict[str, Any]:
        if latent is not None:
            return {"values": [0.0, 0.5, 2.0] if latent == 5 else [1.0, 0.0, 0.0]}
        return {
            "tokens": [[1, text], [2, " b"], [3, "<img src=x onerror=window.hacked=1>"]],
            "top": [[[9, 1.0]], [[5, 0.5]], [[5, 2.0]]],
            "active": [[5, 2.0, 2, 2], [9, 1.0, 0, 1]],
        }


def test_typed_text_is_answered_where_the_atlas_is_served(visit: Make, site: Path) -> None:
    page = visit(f"{site.as_uri()}#text", "Your own text")
    command = f"palinka atlas serve --ckpt_path last --atlas {site.parent}/"
    assert page.locator("pre").inner_text() == command
    assert page.locator("textarea").count() == 0
    with AtlasServer(site.parent, Answers()) as server:  # type: ignore[arg-type]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = visit(f"{server.url}#text", "Your own text")
        page.get_by_label("Text", exact=True).fill("<script>window.hacked=1</script>")
        page.get_by_role("button", name="Show latents").click()
        page.get_by_role("heading", name="2 latents active").wait_for()
        shaded = page.locator(".shaded .token")
        shaded.nth(2).wait_for()
        assert shaded.all_inner_texts()[0] == "<script>window.hacked=1</script>"
        assert shaded.nth(2).get_attribute("class") == "token peak on"
        page.get_by_role("button", name="9", exact=True).first.click()
        page.get_by_role("heading", name="Latent 9").wait_for()
        page.locator(".shaded .token.peak", has_text="window.hacked").wait_for()
        assert shaded.nth(0).get_attribute("class") == "token peak on"
        assert page.evaluate("window.hacked") is None
        server.shutdown()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.slow
def test_texts_stand_out_from_their_grounds(browser: Any, site: Path, scheme: str) -> None:
    with browser.new_page(color_scheme=scheme) as page:
        for address in ADDRESSES:
            page.goto(site.as_uri() + address)
            page.locator("main h1").wait_for()
            assert page.evaluate(CONTRASTS) == [], "a contrast of 4.5 at least, as WCAG AA asks"


# Every element with text of its own whose color is too near to what is painted behind it.
CONTRASTS = """() => {
  const parse = (color) => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return color.startsWith("color(srgb") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((part, i) => part * a + under[i] * (1 - a));
  const ground = (element) => {
    const own = parse(getComputedStyle(element).backgroundColor);
    if (own[3] === 1 || !element.parentElement) return own.slice(0, 3);
    return over(own, ground(element.parentElement));
  };
  const light = (color) => {
    const [r, g, b] = color.map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const poor = [];
  for (const element of document.body.querySelectorAll("*")) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const away = element.closest(".hidden, .skip, [aria-hidden=true]");
    const seen = element.checkVisibility() && !away;
    if (!text || !seen || element.tagName === "OPTION") continue;
    const back = ground(element);
    const front = over(parse(getComputedStyle(element).color), back);
    const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) poor.push(`${element.className || element.tagName} ${contrast.toFixed(2)}`);
  }
  return [...new Set(poor)];
}"""


NAMELESS = """() => [...document.querySelectorAll(
    "button, input, select, textarea, a, img, canvas, svg[role=img]")].filter((e) => !(
    e.ariaLabel || e.alt || e.textContent.trim() || e.labels?.length ||
    e.querySelector("img[alt]"))).length"""


def test_pages_fit_a_narrow_window_and_every_control_has_a_name(browser: Any, site: Path) -> None:
    with browser.new_page(viewport={"width": 360, "height": 700}) as page:
        for address in ADDRESSES:
            page.goto(site.as_uri() + address)
            page.locator("main h1").wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            nav = page.locator("nav")
            assert nav.evaluate("nav => nav.scrollWidth - nav.clientWidth") == 0
            assert page.locator("h1").count() == 1
            assert page.evaluate(NAMELESS) == 0
            ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
            assert len(ids) == len(set(ids))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_white_of_a_figure_is_the_ground_and_its_black_the_opposite(
    browser: Any, site: Path, scheme: str
) -> None:
    with browser.new_page(color_scheme=scheme) as page:
        page.goto(f"{site.as_uri()}#analysis=0")
        page.wait_for_function("document.querySelector('img')?.complete")
        ground = page.locator(".drawn").evaluate("e => getComputedStyle(e).backgroundColor")
        shown = matplotlib.image.imread(io.BytesIO(page.locator(".drawn img").screenshot()))[
            ..., :3
        ]
        expected = np.array(list(map(int, re.findall(r"\d+", ground)))) / 255
        np.testing.assert_allclose(shown[2, 2], expected, atol=0.01)
        assert np.ptp(shown.mean(axis=-1)) > 0.7  # the frame's lines


@pytest.mark.slow
def test_a_dictionary_of_24576_latents_is_reported(
    visit: Make, tmp_path: Path, make_facts: Make, about: About
) -> None:
    site = write_site(tmp_path / "atlas", make_facts(24_576), about)
    page = visit(site.as_uri())
    page.locator("#search").fill("word17")
    page.locator("#results [role=option]").first.wait_for()
    page.goto(f"{site.as_uri()}#latent=20000")
    heading(page, "Latent 20000")
    assert page.locator(".contexts li").count() == 10
