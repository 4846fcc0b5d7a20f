"""Text heatmaps as figures and as HTML."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib import font_manager
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.figures.style import style
from palinka.errors import InputError, escape_control_chars

# Squares let the strongest tokens of a latent stand out; units are shown as they are.
LATENT_EXPONENT, UNIT_EXPONENT = 2.0, 1.0
POSITIVE, NEGATIVE, BELOW_ZERO = "Reds", "Blues", "Greys"

# Familiar signs; other invisible characters are shown by their code point.
SIGNS = {" ": " ", "\n": "↵", "\t": "⇥", "\u00a0": "⍽"}
SPACE, DOTTED_CIRCLE, ZERO_WIDTH_JOINER = "␣", "◌", "\u200d"
# Spaces that would be overlooked or misread: at the end, or several in a row.
HIDDEN_SPACES = re.compile(" {2,}| $")
# Bytes that are part of no character, as Python's `surrogateescape` has them.
BYTES = re.compile(r"[\udc80-\udcff]+")

FONTS = (
    "DejaVu Sans Mono", "Noto Sans Mono CJK SC", "Noto Sans Mono CJK JP", "WenQuanYi Zen Hei Mono",
    "Noto Emoji", "DejaVu Sans",
)  # fmt: skip
# A whole number of pixels at 160 and at 240 dots per inch, so that the letters stay in step.
COLUMN_INCHES = 0.0625
# DejaVu Sans Mono is 0.602 of its size wide.
POINTS = COLUMN_INCHES * 72 / 0.602
LINE_INCHES = 1.5 * POINTS / 72
MARGIN_INCHES = 0.1
CAPTION_LINES, BAR_COLUMNS = 2.7, 20
# Image files cannot hold more lines; the page in HTML has no such limit.
MAX_LINES = 1200

TEMPLATE = Path(__file__).with_name("text_heatmap.html")
# Longer words, such as those of scripts without spaces, may be divided between lines.
MAX_WORD_WIDTH = 30


@dataclass(frozen=True)
class Heatmap:
    """One series over the tokens of a text.

    Attributes:
        values: A number for each token, `(tokens,)`.
        caption: Name of the series.
        colors: Name of a matplotlib color map whose low end is light.
        exponent: Power that values are raised to after they are scaled to [0, 1].
        signed: Zero, not the lowest value, is light, and values below it are gray.
    """

    values: ArrayLike
    caption: str = ""
    colors: str = POSITIVE
    exponent: float = LATENT_EXPONENT
    signed: bool = False

    def numbers(self, tokens: int) -> NDArray[np.float64]:
        """The values, checked against the number of tokens."""
        name, values = f"heatmap {self.caption!r}", np.asarray(self.values, dtype=np.float64)
        if values.shape != (tokens,):
            given = f"{name} has values of the shape {values.shape} for {tokens} tokens"
            raise InputError(f"{given}; expected one value for each token")
        if not np.isfinite(values).all():
            raise InputError(f"{name} holds NaN or infinite values; leave those tokens out")
        return values

    def cells(self, tokens: int) -> list[tuple[str, str]]:
        """Background and text color of every token, as `#rrggbb`; the lowest if all are equal."""
        shades = self._shades(self.numbers(tokens))
        return [(to_hex(tuple(shade)), readable_on(shade)) for shade in shades]

    def scale(self) -> tuple[str, NDArray[np.float64], str]:
        """The lowest and the highest value, and between them the colors of a bar, `(64, 3)`."""
        values = np.asarray(self.values, dtype=np.float64)
        low, high = values.min(), values.max()
        below = " (below 0: gray)" if self.signed and low < 0 else ""
        return f"{low:.3g}{below}", self._shades(np.linspace(low, high, 64)), f"{high:.3g}"

    def _shades(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        light = 0.0 if self.signed else values.min()
        sizes = np.abs(values - light)
        levels = (sizes / (sizes.max() or 1.0)) ** self.exponent
        above, below = mpl.colormaps[self.colors](levels), mpl.colormaps[BELOW_ZERO](0.5 * levels)
        return np.where(values[:, None] < light, below, above)[:, :3]


def readable_on(color: ArrayLike) -> str:
    """Black or white, the one with more contrast on a color (red, green and blue in [0, 1]).

    By the relative luminance of the Web Content Accessibility Guidelines 2.1.
    """
    channels = np.asarray(color)
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    # Contrast with black is (L + 0.05) / 0.05, with white 1.05 / (L + 0.05).
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return "#000000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#ffffff"


def display_tokens(tokens: Sequence[str | bytes]) -> tuple[str, ...]:
    """Make every token visible as a text of its own.

    Line breaks, tabs, and spaces that would be overlooked become `↵`, `⇥` and `␣`; other
    invisible characters, among them those that turn the direction of text, their code point,
    such as `⟨U+200F⟩`. A character whose UTF-8 bytes are divided over tokens is shown where it
    is complete, if its tokens are given as bytes; the tokens before it show their bytes, such as
    `⟨F0 9F⟩`. No text is empty.
    """
    chunks = [t.encode("utf-8", "surrogatepass") if isinstance(t, str) else t for t in tokens]
    owners = [index for index, chunk in enumerate(chunks) for _ in chunk]
    contents = [""] * len(chunks)
    start = 0
    for character in b"".join(chunks).decode("utf-8", "surrogateescape"):
        data = character.encode("utf-8", "surrogateescape")
        *earlier, last = owners[start : start + len(data)]
        for owner, byte in zip(earlier, data, strict=False):
            if owner != last:
                contents[owner] += chr(0xDC00 + byte)
        contents[last] += character
        start += len(data)
    return tuple(map(_visible, contents))


def _visible(content: str) -> str:
    text = ""
    for position, character in enumerate(content):
        # A joiner makes one emoji of two.
        joins = character == ZERO_WIDTH_JOINER and 0 < position < len(content) - 1
        if character in SIGNS:
            text += SIGNS[character]
        elif not (joins or character.isprintable() or BYTES.match(character)):
            text += f"⟨U+{ord(character):04X}⟩"
        elif not text and unicodedata.category(character).startswith("M"):
            text += DOTTED_CIRCLE + character  # an accent alone would land on its neighbor
        else:
            text += character
    text = BYTES.sub(
        lambda run: f"⟨{run[0].encode('utf-8', 'surrogateescape').hex(' ').upper()}⟩", text
    )
    return HIDDEN_SPACES.sub(lambda spaces: SPACE * len(spaces[0]), text or "⟨⟩")


class Cell(NamedTuple):
    """A token, or a part of one that is longer than a line, with its place in columns."""

    token: int
    text: str
    column: int
    width: int


def text_width(text: str) -> int:
    """Number of columns of a text: two for wide characters and emoji, none for accents."""
    return sum(width for _, width in _measured(text))


def _measured(text: str) -> Iterator[tuple[str, int]]:
    """Yield each character with its width in columns."""
    before = ""
    for character in text:
        category = unicodedata.category(character)
        joined = before == ZERO_WIDTH_JOINER or category in {"Mn", "Me", "Cf"}
        wide = unicodedata.east_asian_width(character) in "WF"
        yield character, 0 if joined else 2 if wide else 1
        before = character


def words(texts: Sequence[str]) -> Iterator[list[int]]:
    """Indices of the tokens of each word: it begins with a space, or after a line break."""
    word: list[int] = []
    for token, text in enumerate(texts):
        if word and (text[0] in (" ", SPACE) or _ends_line(texts[word[-1]])):
            yield word
            word = []
        word.append(token)
    if word:
        yield word


def _ends_line(text: str) -> bool:
    return text.endswith(SIGNS["\n"])


def token_lines(texts: Sequence[str], columns: int) -> list[list[Cell]]:
    """Set tokens that `display_tokens` gave in lines, breaking between words if possible."""
    lines: list[list[Cell]] = [[]]
    column = 0
    for word in words(texts):
        parts = [(token, part) for token in word for part in _parts(texts[token], columns)]
        widths = [text_width(part) for _, part in parts]
        needed = sum(widths)  # by the whole word, before its first part
        for (token, part), width in zip(parts, widths, strict=True):
            if column and column + max(needed, width) > columns:
                lines.append([])
                column = 0
            lines[-1].append(Cell(token, part, column, width))
            column += width
            needed = 0
        if _ends_line(texts[word[-1]]):
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


def text_heatmap(
    tokens: Sequence[str | bytes], heatmaps: Sequence[Heatmap], columns: int = 53,
    underlined: Sequence[bool] | None = None, title: str = "",
) -> Figure:  # fmt: skip
    """Draw a text once for every heatmap, one above the other, under a title.

    Each heatmap is scaled over the text, as the bar below its caption shows. `tokens` are bytes
    where characters are divided over tokens; a line has `columns` characters. `underlined` is a
    mask of tokens, such as those of a category.
    """
    texts = _checked_texts(tokens, heatmaps)
    lines = token_lines([_drawable(text) for text in texts], columns)
    shown = lines[: max(1, MAX_LINES // len(heatmaps))]
    used = max(24, max(cell.column + cell.width for line in shown for cell in line))
    headings, block = wrap(title, used), CAPTION_LINES + len(shown) + 0.8
    lowest = len(headings) + block * len(heatmaps)
    width, height = used * COLUMN_INCHES, lowest * LINE_INCHES
    page = width + 2 * MARGIN_INCHES, height + 2 * MARGIN_INCHES
    with style():
        figure = Figure(figsize=page)
    figure.set_layout_engine("none")
    corner = MARGIN_INCHES / page[0], MARGIN_INCHES / page[1]
    axes = figure.add_axes((*corner, width / page[0], height / page[1]))
    axes.set(xlim=(0, used), ylim=(lowest, 0))
    axes.set_axis_off()
    # A token is never markup.
    font: dict[str, Any] = {"fontsize": POINTS, "parse_math": False}
    family = list(_installed_fonts())
    for row, heading in enumerate(headings):
        axes.text(0, row + 0.7, heading, **font)
    for number, heatmap in enumerate(heatmaps):
        top = len(headings) + number * block + CAPTION_LINES
        colors = heatmap.cells(len(texts))
        low, bar, high = heatmap.scale()
        if len(shown) < len(lines):
            high += f"   (the first {len(shown)} of {len(lines)} lines)"
        axes.text(0, top - 1.5, heatmap.caption, weight="bold", **font)
        axes.text(0, top - 0.5, low, **font)
        ends = len(low) + 1, len(low) + 1 + BAR_COLUMNS
        axes.imshow(bar[None], extent=(*ends, top - 0.3, top - 1.1), aspect="auto")
        axes.text(ends[1] + 1, top - 0.5, high, **font)
        boxes, backgrounds = [], []
        for row, line in enumerate(shown):
            y = top + row
            for cell in line:
                left, right = cell.column, cell.column + cell.width
                boxes.append([(left, y), (right, y), (right, y + 0.94), (left, y + 0.94)])
                background, ink = colors[cell.token]
                backgrounds.append(background)
                axes.text(left, y + 0.68, cell.text, color=ink, family=family, **font)
                if underlined is not None and underlined[cell.token]:
                    start = left + text_width(cell.text) - text_width(cell.text.lstrip())
                    axes.plot([start, right], [y + 0.81, y + 0.81], color=ink, linewidth=1.0)
        axes.add_collection(PolyCollection(boxes, facecolors=backgrounds, edgecolors="white"))
    return figure


def _checked_texts(tokens: Sequence[str | bytes], heatmaps: Sequence[Heatmap]) -> tuple[str, ...]:
    if len(tokens) == 0 or len(heatmaps) == 0:
        counts = f"{len(tokens)} tokens and {len(heatmaps)} series"
        raise InputError(f"a text heatmap of {counts}; expected at least one of each")
    return display_tokens(tokens)


@cache
def _installed_fonts() -> tuple[str, ...]:
    known = set(font_manager.get_font_names())
    return tuple(font for font in FONTS if font in known)


@cache
def _glyphs() -> frozenset[int]:
    """The code points that some installed font can draw."""
    files = [font_manager.findfont(font) for font in _installed_fonts()]
    return frozenset(point for file in files for point in font_manager.get_font(file).get_charmap())


def _drawable(text: str) -> str:
    """Replace characters that no font has by a box."""
    return "".join(character if ord(character) in _glyphs() else "□" for character in text)


def text_heatmap_html(
    tokens: Sequence[str | bytes], heatmaps: Sequence[Heatmap], *, title: str = "Text heatmap",
    token_ids: Sequence[int] | None = None, underlined: Sequence[bool] | None = None,
) -> str:  # fmt: skip
    """Render a page that shows a text once for every heatmap, one above the other.

    The page, under the heading `title`, needs no other file and runs no script. Pointing at a
    token shows its value, its position and, where `token_ids` are given, its id. `underlined` is a
    mask of tokens, such as those of a category.

    Tokens, captions and the title are escaped, and invisible characters in them shown.
    """
    texts = _checked_texts(tokens, heatmaps)
    if token_ids is not None and len(token_ids) != len(texts):
        raise InputError(f"{len(token_ids)} token ids for {len(texts)} tokens; give one for each")
    ids = [""] * len(texts) if token_ids is None else [f" · id {int(each)}" for each in token_ids]
    sections = []
    for heatmap in heatmaps:
        values = enumerate(heatmap.numbers(len(texts)))
        titles = [f"{value:.6g} · token {i}{ids[i]}" for i, value in values]
        marks = underlined or [False] * len(texts)
        cells = list(zip(texts, titles, heatmap.cells(len(texts)), marks, strict=True))
        low, bar, high = heatmap.scale()
        gradient = ", ".join(to_hex(tuple(shade)) for shade in bar)
        scale = {"low": low, "gradient": gradient, "high": high}
        caption = escape_control_chars(heatmap.caption)
        sections.append({"caption": caption, "scale": scale, "cells": cells})
    groups = []
    for word in words(texts):
        whole = sum(text_width(texts[token]) for token in word) <= MAX_WORD_WIDTH
        ends_line = _ends_line(texts[word[-1]])
        groups.append({"tokens": word, "whole": whole, "ends_line": ends_line})
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(autoescape=True, undefined=StrictUndefined, **options)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=escape_control_chars(title), sections=sections, words=groups)
