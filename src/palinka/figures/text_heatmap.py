"""A text whose tokens are colored by their activations, as a figure."""

from collections.abc import Sequence
from functools import cache

from matplotlib import font_manager
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from palinka.errors import InputError
from palinka.figures.display_tokens import display_tokens
from palinka.figures.heatmap import Heatmap
from palinka.figures.style import style
from palinka.figures.token_lines import token_lines

FONTS = (
    "DejaVu Sans Mono",
    "Noto Sans Mono CJK SC",
    "Noto Sans Mono CJK JP",
    "WenQuanYi Zen Hei Mono",
    "Noto Emoji",
    "DejaVu Sans",
)
# A whole number of pixels at 120 and at 160 dots per inch, so that the letters stay in step.
COLUMN_INCHES = 0.075
# DejaVu Sans Mono is 0.602 of its size wide.
POINTS = COLUMN_INCHES * 72 / 0.602
LINE_INCHES = 1.5 * POINTS / 72
MARGIN_INCHES = 0.12
CAPTION_LINES = 1.6
# More lines would pass what image files can hold; the page in HTML has no such end.
MOST_LINES = 1200


def text_heatmap(
    tokens: Sequence[str | bytes], heatmaps: Sequence[Heatmap], columns: int = 88
) -> Figure:
    """Draw a text once for every heatmap, one above the other.

    Each heatmap is scaled from its least to its largest value over the text; both are shown
    behind the caption.

    Args:
        tokens: The text, token by token; bytes where characters are divided over tokens.
        heatmaps: What to color the tokens by.
        columns: The length of a line in characters.

    Raises:
        InputError: If there are no tokens or no heatmaps, if values do not fit the tokens, or
            if a line is too short to hold a character.
    """
    texts = checked_texts(tokens, heatmaps)
    if columns < 2:
        raise InputError(f"columns is {columns}; expected at least 2")
    lines = token_lines([_drawable(text) for text in texts], columns)
    shown = lines[: max(1, MOST_LINES // len(heatmaps))]
    used = max(24, max(cell.column + cell.width for line in shown for cell in line))

    block = CAPTION_LINES + len(shown) + 0.8
    width, height = used * COLUMN_INCHES, block * len(heatmaps) * LINE_INCHES
    page = width + 2 * MARGIN_INCHES, height + 2 * MARGIN_INCHES
    with style():
        figure = Figure(figsize=page)
    figure.set_layout_engine("none")
    axes = figure.add_axes(
        (MARGIN_INCHES / page[0], MARGIN_INCHES / page[1], width / page[0], height / page[1])
    )
    axes.set(xlim=(0, used), ylim=(block * len(heatmaps), 0))
    axes.set_axis_off()
    for number, heatmap in enumerate(heatmaps):
        top = number * block + CAPTION_LINES
        values, colors = heatmap.numbers(len(texts)), heatmap.cells(len(texts))
        caption = f"{heatmap.caption}   {values.min():.3g} … {values.max():.3g}".strip()
        if len(shown) < len(lines):
            caption += f"   (the first {len(shown)} of {len(lines)} lines)"
        axes.text(0, top - 0.35, caption, fontsize=POINTS, weight="bold", parse_math=False)
        boxes, backgrounds = [], []
        for row, line in enumerate(shown):
            y = top + row
            for cell in line:
                left, right = cell.column, cell.column + cell.width
                boxes.append([(left, y), (right, y), (right, y + 0.94), (left, y + 0.94)])
                background, ink = colors[cell.token]
                backgrounds.append(background)
                axes.text(
                    left,
                    y + 0.68,
                    cell.text,
                    color=ink,
                    fontsize=POINTS,
                    family=list(_installed_fonts()),
                    parse_math=False,  # a token is never markup
                )
        axes.add_collection(PolyCollection(boxes, facecolors=backgrounds, edgecolors="white"))
    return figure


def checked_texts(tokens: Sequence[str | bytes], heatmaps: Sequence[Heatmap]) -> tuple[str, ...]:
    """The tokens as they are shown.

    Raises:
        InputError: If there are no tokens or no heatmaps.
    """
    if len(tokens) == 0 or len(heatmaps) == 0:
        raise InputError(
            f"a text heatmap of {len(tokens)} tokens and {len(heatmaps)} series; expected at "
            "least one of each"
        )
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
