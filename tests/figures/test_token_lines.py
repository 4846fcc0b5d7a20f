import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.analyses.figures.text_heatmap import display_tokens, text_width, token_lines


@pytest.mark.parametrize(
    ("text", "columns"),
    [("plum", 4), ("日本", 4), ("😀", 2), ("e\u0301", 1), ("👩\u200d💻", 2), ("", 0), ("Ő↵", 2)],
)
def test_width_in_columns(text, columns):
    assert text_width(text) == columns


def shown(texts, columns):
    return ["".join(cell.text for cell in line) for line in token_lines(texts, columns)]


def test_words_stay_together_and_line_breaks_are_kept():
    assert shown(["The", " plum", " bran", "dy"], 10) == ["The plum", " brandy"]
    assert shown(["a", "↵", "b", "↵↵", "c"], 10) == ["a↵", "b↵↵", "c"]


def test_words_longer_than_a_line_are_divided_between_tokens_and_tokens_where_they_must_be():
    assert shown(["ab", "cd", "ef"], 5) == ["abcd", "ef"]
    assert shown(["x", " abcdefgh"], 4) == ["x", " abc", "defg", "h"]
    assert shown(["日本語"], 3) == ["日", "本", "語"]


@given(st.lists(st.text(max_size=9), min_size=1, max_size=25), st.integers(2, 20))
@settings(max_examples=150, deadline=None)
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
