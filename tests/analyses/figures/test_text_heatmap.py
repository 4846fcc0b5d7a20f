import io
import unicodedata
import warnings
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb

from palinka.analyses.figures.text_heatmap import (
    LINE_INCHES,
    MAX_LINES,
    Heatmap,
    display_tokens,
    readable_on,
    text_heatmap,
    text_heatmap_html,
    text_width,
    token_lines,
)
from palinka.errors import InputError


@pytest.mark.parametrize(
    ("values", "colors", "exponent", "levels"),
    [
        ([2.0, 4.0, 6.0], "Reds", 1.0, [0.0, 0.5, 1.0]),
        ([-2.0, -4.0, -6.0], "Blues", 2.0, [1.0, 0.25, 0.0]),
        ([7.0, 7.0, 7.0], "Reds", 2.0, [0.0, 0.0, 0.0]),
    ],
)
def test_colors_are_those_of_values_scaled_over_the_text(values, colors, exponent, levels):
    backgrounds = [cell[0] for cell in Heatmap(values, "", colors, exponent).cells(3)]
    assert backgrounds == [to_hex(mpl.colormaps[colors](level)) for level in levels]


def test_zero_is_light_and_values_below_it_gray_in_a_signed_heatmap():
    heatmap = Heatmap([-3.0, -1.5, 0.0, 1.5], "", "Reds", 1.0, signed=True)
    greys, reds = mpl.colormaps["Greys"], mpl.colormaps["Reds"]
    expected = [to_hex(shade) for shade in (greys(0.5), greys(0.25), reds(0.0), reds(0.5))]
    assert [cell[0] for cell in heatmap.cells(4)] == expected
    low, bar, high = heatmap.scale()
    assert (low, high) == ("-3 (below 0: gray)", "1.5")
    assert [to_hex(bar[0]), to_hex(bar[-1])] == [expected[0], expected[-1]]


@pytest.mark.parametrize("colors", ["Reds", "Blues", "Greys"])
def test_text_can_be_read_on_every_shade(colors):
    def luminance(color):
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for shade in mpl.colormaps[colors](np.linspace(0, 1, 64))[:, :3]:
        pair = sorted((luminance(shade), luminance(to_rgb(readable_on(shade)))))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("plum", "plum"), (" plum", " plum"), ("plum brandy", "plum brandy"), ("<b>&", "<b>&"),
        (" ", "␣"), ("   ", "␣␣␣"), ("  plum ", "␣␣plum␣"), ("\u00a0", "⍽"), ("", "⟨⟩"),
        ("\n", "↵"), ("\n\n\t", "↵↵⇥"), ("\r\n", "⟨U+000D⟩↵"), ("a\x00b", "a⟨U+0000⟩b"),
        ("\u2003", "⟨U+2003⟩"), ("\u200b", "⟨U+200B⟩"), ("\ufeff", "⟨U+FEFF⟩"),
        ("\u202eabc", "⟨U+202E⟩abc"), ("\u200f", "⟨U+200F⟩"), ("שלום", "שלום"),
        ("\u0301", "◌\u0301"), ("e\u0301", "e\u0301"), ("\ufffd", "\ufffd"),
        ("👩\u200d💻", "👩\u200d💻"), ("\u200d", "⟨U+200D⟩"),
        ("\ud83d", "⟨ED A0 BD⟩"), (b"\xff\xfea", "⟨FF FE⟩a"),
    ],
)  # fmt: skip
def test_nothing_is_invisible(token, shown):
    assert display_tokens([token]) == (shown,)


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        ([b"a\xf0\x9f", b"\x98\x80", "€".encode()], ("a⟨F0 9F⟩", "😀", "€")),
        ([bytes([byte]) for byte in "😀".encode()], ("⟨F0⟩", "⟨9F⟩", "⟨98⟩", "😀")),
        # The end of one and the beginning of another in one token; and one never completed.
        ([b"\xe2\x82", b"\xac \xe2\x82", b"x"], ("⟨E2 82⟩", "€ ⟨E2 82⟩", "x")),
    ],
)
def test_divided_characters_are_shown_where_they_are_complete(tokens, shown):
    assert display_tokens(tokens) == shown


@given(
    st.one_of(st.text(max_size=30).map(str.encode), st.binary(max_size=40)),
    st.lists(st.integers(0, 90), max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_any_division_into_tokens_keeps_every_character(data, cuts):
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    tokens = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    shown = display_tokens(tokens)
    assert len(shown) == len(tokens)
    assert all(shown)
    joined = "".join(shown)
    assert all(unicodedata.category(character) not in {"Cc", "Zl", "Zp"} for character in joined)
    text = data.decode("utf-8", "ignore")
    for character in text:
        if unicodedata.category(character)[0] in "LN":
            assert joined.count(character) >= text.count(character)


@pytest.mark.parametrize(
    ("text", "columns"),
    [("plum", 4), ("日本", 4), ("😀", 2), ("e\u0301", 1), ("👩\u200d💻", 2), ("", 0), ("Ő↵", 2)],
)
def test_width_in_columns(text, columns):
    assert text_width(text) == columns


@pytest.mark.parametrize(
    ("texts", "columns", "lines"),
    [
        # Words stay together, and line breaks are kept.
        (["The", " plum", " bran", "dy"], 10, ["The plum", " brandy"]),
        (["a", " bran", "dy"], 7, ["a", " brandy"]),
        (["a", "↵", "b", "↵↵", "c"], 10, ["a↵", "b↵↵", "c"]),
        # Words longer than a line are divided between tokens, and tokens where they must be.
        (["ab", "cd", "ef"], 5, ["abcd", "ef"]),
        (["x", " abcdefgh"], 4, ["x", " abc", "defg", "h"]),
        (["日本語"], 3, ["日", "本", "語"]),
    ],
)
def test_lines_are_broken_between_words(texts, columns, lines):
    assert ["".join(cell.text for cell in line) for line in token_lines(texts, columns)] == lines


@given(st.lists(st.text(max_size=9), min_size=1, max_size=25), st.integers(2, 20))
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_and_no_line_is_too_long(tokens, columns):
    texts = display_tokens(tokens)
    lines = token_lines(texts, columns)
    parts = {}
    for line in lines:
        column = 0
        for cell in line:
            assert cell.column == column
            assert cell.width == text_width(cell.text)
            column += cell.width
            parts[cell.token] = parts.get(cell.token, "") + cell.text
        assert column <= columns
    assert parts == dict(enumerate(texts))


TOKENS = [
    "The", " plum", " $x_1^", "$", "\n", "日", "😀", b"\xf0\x9f", "<script>", "\u202e", "שלום",
]  # fmt: skip


def test_every_token_has_its_color_and_its_text_and_none_is_markup():
    values = np.arange(len(TOKENS), dtype=float)
    heatmaps = [Heatmap(values, "latent $7$"), Heatmap(-values, "b", "Blues")]
    underlined = [False] * len(TOKENS)
    underlined[1] = True
    figure = text_heatmap(TOKENS, heatmaps, underlined=underlined)
    # Under the letters of " plum", not under its space.
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[4, 8], [4, 8]]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[:7] == ["latent $7$", "0", "10", "The", " plum", " $x_1^", "$"]
    assert {"<script>", "⟨U+202E⟩"} <= set(texts)
    boxes = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    as_tensor = text_heatmap(TOKENS, [Heatmap(torch.from_numpy(values))])  # type: ignore[arg-type]
    assert [text.get_text() for text in as_tensor.axes[0].texts][1:3] == ["0", "10"]
    expected = Heatmap(values).cells(len(TOKENS))
    assert [to_hex(color) for color in boxes[0].get_facecolors()] == [c for c, _ in expected]
    assert to_hex(boxes[1].get_facecolors()[0]) == to_hex(mpl.colormaps["Blues"](1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("png", "svg"):
            figure.savefig(io.BytesIO(), format=kind, dpi=60)


def test_lines_are_as_long_as_asked_and_too_many_end_with_a_remark():
    narrow, wide = (
        text_heatmap([" word"] * 30, [Heatmap(np.ones(30))], columns=columns)
        for columns in (30, 100)
    )
    assert narrow.get_figwidth() < wide.get_figwidth()
    assert narrow.get_figheight() > wide.get_figheight()
    assert len(narrow.axes[0].texts) == len(wide.axes[0].texts) == 33
    titled = text_heatmap([" word"] * 30, [Heatmap(np.ones(30))], columns=30, title="places " * 8)
    lines = [text.get_text() for text in titled.axes[0].texts[:2]]
    assert lines == ["places " * 3 + "places", "places " * 3 + "places"]
    assert titled.get_figheight() == pytest.approx(narrow.get_figheight() + 2 * LINE_INCHES)
    tokens = ["\n"] * (MAX_LINES + 5)
    texts = text_heatmap(tokens, [Heatmap(np.ones(len(tokens)), "unit")]).axes[0].texts
    assert len(texts) == 3 + MAX_LINES
    assert f"the first {MAX_LINES} of {MAX_LINES + 5} lines" in texts[2].get_text()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([], [Heatmap([])]), {}, "0 tokens and 1 series"),
        ((["a"], []), {}, "1 tokens and 0 series"),
        ((["a"], [Heatmap([1.0, 2.0], "u")]), {}, r"'u' has values of the shape \(2,\) for 1 tok"),
        ((["a"], [Heatmap([np.nan], "u")]), {}, "heatmap 'u' holds NaN"),
        ((["a", "b"], [Heatmap([1.0, 2.0])]), {"token_ids": [1]}, "1 token ids for 2 tokens"),
    ],
)
def test_bad_input(arguments, options, message):
    draw = text_heatmap_html if "token_ids" in options else text_heatmap
    with pytest.raises(InputError, match=message):
        draw(*arguments, **options)


NASTY = [
    "<script>alert(1)</script>", '" onmouseover="x', "&lt;", "</div>", "'{{ 7*7 }}", "日本", "שלום",
    " word", " ", "\u202e", "\ud83d", b"\xf0\x9f", b"\x98\x80", "\x00",
]  # fmt: skip


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
    html.encode("utf-8")
    assert [text for _, text in page.tokens] == [
        *NASTY[:8], "␣", "⟨U+202E⟩", "⟨ED A0 BD⟩", "⟨F0 9F⟩", "😀", "⟨U+0000⟩",
    ]  # fmt: skip
    assert "unicode-bidi: isolate" in html
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
    options = {"token_ids": [11, 22, 33], "underlined": [False, True, False]}
    page = Page(text_heatmap_html(["a", " b", "\n"], heatmaps, **options))
    assert ["class" in attributes for attributes, _ in page.tokens] == [False, True, False] * 2
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
