from html.parser import HTMLParser

import numpy as np
import pytest

from palinka.analyses.figures.text_heatmap import Heatmap, text_heatmap_html
from palinka.errors import InputError

NASTY = [
    " word",
    " ",
    "<script>alert(1)</script>",
    '" onmouseover="x',
    "&lt;",
    "</div>",
    "'{{ 7*7 }}",
    "\u202e",
]


class Page(HTMLParser):
    """Collects tags, and the tokens with their attributes."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.tokens, self.headings, self.inside = [], [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.inside = tag
        if tag == "i":
            self.tokens.append([dict(attributes), ""])

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "i":
            self.tokens[-1][1] += data
        if self.inside in ("h1", "h2"):
            self.headings.append(data)


def test_text_is_never_markup():
    heatmap = Heatmap(np.arange(len(NASTY)), "<b>caption</b>")
    html = text_heatmap_html(NASTY, [heatmap], title="<img src=x>")
    page = Page(html)
    assert [text for _, text in page.tokens] == [" word", "␣", *NASTY[2:-1], "⟨U+202E⟩"]
    assert page.headings == ["<img src=x>", "<b>caption</b>"]
    assert set(page.tags) == {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "small", "section", "div",
        "b", "i", "wbr",
    }  # fmt: skip
    assert all(set(attributes) == {"title", "style"} for attributes, _ in page.tokens)
    # Nothing is fetched and nothing may run, whatever a browser makes of the rest.
    assert "default-src 'none'" in html
    assert "http" not in html.replace("http-equiv", "")


def test_hovering_shows_value_and_id_and_colors_follow_the_heatmap():
    values = np.array([0.25, 1.5, -3.0])
    heatmaps = [Heatmap(values, "first"), Heatmap(values, "second", "Blues", 1.0)]
    page = Page(text_heatmap_html(["a", " b", "\n"], heatmaps, token_ids=[11, 22, 33]))
    titles = [attributes["title"] for attributes, _ in page.tokens]
    assert titles[:3] == titles[3:]
    assert titles[0] == "0.25 · token 0 · id 11"
    assert titles[2] == "-3 · token 2 · id 33"
    for part, heatmap in zip((page.tokens[:3], page.tokens[3:]), heatmaps, strict=True):
        for (attributes, _), (background, ink) in zip(part, heatmap.cells(3), strict=True):
            assert attributes["style"] == f"background:{background};color:{ink}"
    assert page.tags.count("br") == 2
    without_ids = Page(text_heatmap_html(["a"], [Heatmap([1.0])]))
    assert without_ids.tokens[0][0]["title"] == "1 · token 0"


def test_page_is_written_as_utf8_whatever_the_tokens():
    tokens = ["\ud83d", "日本", b"\xf0\x9f", b"\x98\x80", "\x00", "שלום"]
    html = text_heatmap_html(tokens, [Heatmap(np.ones(6))])
    html.encode("utf-8")
    assert [text for _, text in Page(html).tokens] == [
        "⟨ED A0 BD⟩", "日本", "⟨F0 9F⟩", "😀", "⟨U+0000⟩", "שלום",
    ]  # fmt: skip
    assert "unicode-bidi: isolate" in html


def test_refuses_ids_that_do_not_fit():
    with pytest.raises(InputError, match="1 token ids for 2 tokens"):
        text_heatmap_html(["a", "b"], [Heatmap([1.0, 2.0])], token_ids=[1])
