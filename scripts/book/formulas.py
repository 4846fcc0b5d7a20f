"""Formulas of the book, from TeX to MathML while it is built, so that a page loads nothing."""

import html
import re

from latex2mathml.converter import convert

# What pymdownx.arithmatex makes of `$…$` and of `$$…$$`.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def set_formulas(page: str) -> str:
    """Replace every formula of a page, in HTML, by MathML."""
    page = _BLOCK.sub(lambda found: _mathml(found[1], "block"), page)
    return _INLINE.sub(lambda found: _mathml(found[1], "inline"), page)


def _mathml(tex: str, display: str) -> str:
    formula: str = convert(html.unescape(tex).strip(), display=display)
    return formula
