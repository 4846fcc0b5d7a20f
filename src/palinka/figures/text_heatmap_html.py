"""A text whose tokens are colored by their activations, as a self-contained page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from palinka.errors import InputError
from palinka.figures.heatmap import Heatmap
from palinka.figures.text_heatmap import checked_texts
from palinka.figures.token_lines import ends_line, text_width, words
from palinka.printable import printable

TEMPLATE = Path(__file__).with_name("text_heatmap.html")
# Longer words, such as those of scripts without spaces, may be divided between lines.
LONGEST_WORD = 30


def text_heatmap_html(
    tokens: Sequence[str | bytes],
    heatmaps: Sequence[Heatmap],
    *,
    title: str = "Text heatmap",
    token_ids: Sequence[int] | None = None,
) -> str:
    """Write a page that shows a text once for every heatmap, one above the other.

    The page needs no other file and runs no script. Pointing at a token shows its value, its
    position and, where given, its id.

    Args:
        tokens: The text, token by token; bytes where characters are divided over tokens.
        heatmaps: What to color the tokens by.
        title: The page's heading.
        token_ids: The tokens' ids, `(tokens,)`.

    Returns:
        HTML. Tokens, captions and the title are escaped; what cannot be seen in them is written
        out.

    Raises:
        InputError: If there are no tokens or no heatmaps, or if values or ids do not fit them.
    """
    texts = checked_texts(tokens, heatmaps)
    if token_ids is not None and len(token_ids) != len(texts):
        raise InputError(
            f"there are {len(token_ids)} token ids for {len(texts)} tokens; expected one for each"
        )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    sections = [_section(texts, heatmap, token_ids) for heatmap in heatmaps]
    return template.render(title=printable(title), sections=sections)


def _section(
    texts: Sequence[str], heatmap: Heatmap, token_ids: Sequence[int] | None
) -> dict[str, Any]:
    values, colors = heatmap.numbers(len(texts)), heatmap.cells(len(texts))

    def cell(token: int) -> dict[str, str]:
        about = [f"{values[token]:.6g}", f"token {token}"]
        if token_ids is not None:
            about.append(f"id {int(token_ids[token])}")
        background, ink = colors[token]
        return {
            "text": texts[token],
            "about": " · ".join(about),
            "background": background,
            "ink": ink,
        }

    return {
        "caption": printable(heatmap.caption),
        "low": f"{values.min():.3g}",
        "high": f"{values.max():.3g}",
        "words": [
            {
                "cells": [cell(token) for token in word],
                "whole": sum(text_width(texts[token]) for token in word) <= LONGEST_WORD,
                "ends_line": ends_line(texts[word[-1]]),
            }
            for word in words(texts)
        ],
    }
