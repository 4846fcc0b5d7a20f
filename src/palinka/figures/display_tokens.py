"""Tokens as text that can be seen: no character is invisible, and none is lost."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

# What a reader knows at a glance; other invisible characters are shown by their code point.
SIGNS = {" ": " ", "\n": "↵", "\t": "⇥", "\u00a0": "⍽"}
SPACE = "␣"
DOTTED_CIRCLE = "◌"
ZERO_WIDTH_JOINER = "\u200d"
INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"}
# Spaces that would be overlooked or misread: at the end, or several in a row.
HIDDEN_SPACES = re.compile(" {2,}| $")


def display_tokens(tokens: Sequence[str | bytes]) -> tuple[str, ...]:
    """Show every token as text of its own.

    Line breaks, tabs, and spaces that would be overlooked become `↵`, `⇥` and `␣`; other
    invisible characters, among them those that turn the direction of text, their code point,
    such as `⟨U+200F⟩`. A character whose UTF-8 bytes are divided over tokens is shown where it
    is complete; the tokens before it show their bytes, such as `⟨F0 9F⟩`.

    Args:
        tokens: Each token's text, or its bytes, from which divided characters can be read.

    Returns:
        One text for each token, never empty.
    """
    chunks = [
        token.encode("utf-8", "surrogatepass") if isinstance(token, str) else token
        for token in tokens
    ]
    owners = [index for index, chunk in enumerate(chunks) for _ in chunk]
    data = b"".join(chunks)
    # For each token its characters, and as integers the bytes that are none yet.
    contents: list[list[str | int]] = [[] for _ in chunks]
    for start, end, character in _characters(data):
        for byte in range(start, end):
            if character is None or owners[byte] != owners[end - 1]:
                contents[owners[byte]].append(data[byte])
        if character is not None:
            contents[owners[end - 1]].append(character)
    return tuple(_visible(content) for content in contents)


def _characters(data: bytes) -> Iterator[tuple[int, int, str | None]]:
    """Start, end and character of each piece of UTF-8; `None` for a byte that is part of none."""
    start = 0
    while start < len(data):
        lead = data[start]
        length = 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        try:
            yield start, start + length, data[start : start + length].decode("utf-8")
            start += length
        except UnicodeDecodeError:
            yield start, start + 1, None
            start += 1


def _visible(content: Sequence[str | int]) -> str:
    parts: list[str] = []
    for position, item in enumerate(content):
        if isinstance(item, int):
            follows = position > 0 and isinstance(content[position - 1], int)
            if follows:
                parts[-1] = f"{parts[-1][:-1]} {item:02X}⟩"
            else:
                parts.append(f"⟨{item:02X}⟩")
        elif item in SIGNS:
            parts.append(SIGNS[item])
        elif item == ZERO_WIDTH_JOINER and 0 < position < len(content) - 1:
            parts.append(item)  # it makes one emoji of two
        elif unicodedata.category(item) in INVISIBLE:
            parts.append(f"⟨U+{ord(item):04X}⟩")
        elif not parts and unicodedata.category(item).startswith("M"):
            parts.append(DOTTED_CIRCLE + item)  # an accent alone would land on its neighbor
        else:
            parts.append(item)
    text = "".join(parts) or "⟨⟩"
    return HIDDEN_SPACES.sub(lambda spaces: SPACE * len(spaces[0]), text)
