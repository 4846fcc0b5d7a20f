"""Setting tokens in lines of a fixed number of monospace columns."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from palinka.figures.display_tokens import SIGNS, SPACE, ZERO_WIDTH_JOINER


@dataclass(frozen=True)
class Cell:
    """A token, or a part of one that is longer than a line, at its place.

    Attributes:
        token: The token's index.
        text: What is shown.
        column: Where it starts, in columns from the left.
        width: How many columns it takes.
    """

    token: int
    text: str
    column: int
    width: int


def text_width(text: str) -> int:
    """How many columns a text takes: wide characters and emoji two, accents none."""
    return sum(width for _, width in _measured(text))


def _measured(text: str) -> Iterator[tuple[str, int]]:
    """Each character with its columns."""
    before = ""
    for character in text:
        joined = before == ZERO_WIDTH_JOINER or unicodedata.category(character) in {
            "Mn",
            "Me",
            "Cf",
        }
        wide = unicodedata.east_asian_width(character) in "WF"
        yield character, 0 if joined else 2 if wide else 1
        before = character


def words(texts: Sequence[str]) -> Iterator[list[int]]:
    """Group tokens into words, which should not be divided between lines.

    A word begins where a token begins with a space, and after a line break.

    Args:
        texts: Tokens as `display_tokens` shows them.

    Yields:
        The indices of the tokens of each word.
    """
    word: list[int] = []
    for token, text in enumerate(texts):
        if word and (text[0] in (" ", SPACE) or ends_line(texts[word[-1]])):
            yield word
            word = []
        word.append(token)
    if word:
        yield word


def ends_line(text: str) -> bool:
    """Whether the text goes on in a new line after this token."""
    return text.endswith(SIGNS["\n"])


def token_lines(texts: Sequence[str], columns: int) -> list[list[Cell]]:
    """Set tokens in lines, breaking between words where that is possible.

    Args:
        texts: Tokens as `display_tokens` shows them.
        columns: The length of a line; at least 2.

    Returns:
        The cells of every line.
    """
    lines: list[list[Cell]] = [[]]
    column = 0
    for word in words(texts):
        length = sum(text_width(texts[token]) for token in word)
        if column and column + length > columns:
            lines.append([])
            column = 0
        for token in word:
            for part in _parts(texts[token], columns):
                width = text_width(part)
                if column and column + width > columns:
                    lines.append([])
                    column = 0
                lines[-1].append(Cell(token, part, column, width))
                column += width
        if ends_line(texts[word[-1]]):
            lines.append([])
            column = 0
    return [line for line in lines if line]


def _parts(text: str, columns: int) -> Iterator[str]:
    """Divide a text that is longer than a line."""
    part, filled = "", 0
    for character, width in _measured(text):
        if filled + width > columns:
            yield part
            part, filled = "", 0
        part += character
        filled += width
    yield part
