import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.analyses.figures.text_heatmap import display_tokens


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("plum", "plum"),
        (" plum", " plum"),
        ("plum brandy", "plum brandy"),
        (" ", "␣"),
        ("   ", "␣␣␣"),
        ("  plum ", "␣␣plum␣"),
        ("\n", "↵"),
        ("\n\n\t", "↵↵⇥"),
        ("\r\n", "⟨U+000D⟩↵"),
        ("a\x00b", "a⟨U+0000⟩b"),
        ("\u00a0", "⍽"),
        ("\u2003", "⟨U+2003⟩"),
        ("\u200b", "⟨U+200B⟩"),
        ("\u202eabc", "⟨U+202E⟩abc"),
        ("\u200f", "⟨U+200F⟩"),
        ("\ufeff", "⟨U+FEFF⟩"),
        ("\u0301", "◌\u0301"),
        ("e\u0301", "e\u0301"),
        ("👩\u200d💻", "👩\u200d💻"),
        ("\u200d", "⟨U+200D⟩"),
        ("שלום", "שלום"),
        ("<b>&", "<b>&"),
        ("", "⟨⟩"),
        ("\ud83d", "⟨ED A0 BD⟩"),
        (b"\xff\xfea", "⟨FF FE⟩a"),
        ("\ufffd", "\ufffd"),
    ],
)
def test_nothing_is_invisible(token, shown):
    assert display_tokens([token]) == (shown,)


def test_divided_characters_are_shown_where_they_are_complete():
    first, second, third = "a😀€"[:1].encode() + "😀".encode()[:2], "😀".encode()[2:], "€".encode()
    assert display_tokens([first, second, third]) == ("a⟨F0 9F⟩", "😀", "€")
    four = [bytes([byte]) for byte in "😀".encode()]
    assert display_tokens(four) == ("⟨F0⟩", "⟨9F⟩", "⟨98⟩", "😀")
    # The end of one and the beginning of another in one token; and one never completed.
    assert display_tokens([b"\xe2\x82", b"\xac \xe2\x82", b"x"]) == (
        "⟨E2 82⟩",
        "€ ⟨E2 82⟩",
        "x",
    )


@given(st.text(max_size=30), st.lists(st.integers(0, 90), max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_division_into_tokens_keeps_every_character(text, cuts):
    data = text.encode("utf-8", "surrogatepass")
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    tokens = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    shown = display_tokens(tokens)
    assert len(shown) == len(tokens)
    assert all(shown)
    joined = "".join(shown)
    assert all(unicodedata.category(character) not in {"Cc", "Zl", "Zp"} for character in joined)
    for character in text:
        if unicodedata.category(character)[0] in "LN":
            assert joined.count(character) >= text.count(character)


@given(st.binary(max_size=40), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_takes_any_bytes(data, length):
    tokens = [data[start : start + length] for start in range(0, len(data), length)]
    assert len(display_tokens(tokens)) == len(tokens)
