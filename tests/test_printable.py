import pytest
from hypothesis import given
from hypothesis import strategies as st

from palinka.errors import escape_control_chars


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Straße, 日本, שלום, 😀\u00a0!", "Straße, 日本, שלום, 😀\u00a0!"),
        ("one\r\ntwo\u2028three", r"one\r\ntwo\u2028three"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\u202eb\u200f", r"a\u202eb\u200f"),
        ("\ud83d\x00\x9b", r"\ud83d\x00\x9b"),
        ("👩\u200d🔬 \u0645\u06cc\u200c\u062e", "👩\u200d🔬 \u0645\u06cc\u200c\u062e"),
        ("\u200da\u200db\u200d", r"\u200da\u200db\u200d"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, expected: str) -> None:
    assert escape_control_chars(text) == expected


@given(st.text(st.characters(exclude_categories=())))
def test_the_result_is_one_line_that_stays_as_it_is(text: str) -> None:
    shown = escape_control_chars(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    assert escape_control_chars(shown) == shown
