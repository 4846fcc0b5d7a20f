import io
import warnings

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex

from palinka.analyses import figures
from palinka.analyses.figures.text_heatmap import MOST_LINES, Heatmap, text_heatmap
from palinka.errors import InputError

TOKENS = [
    "The",
    " plum",
    " $x_1^",
    "$",
    "\n",
    "日",
    "😀",
    b"\xf0\x9f",
    "<script>",
    "\u202e",
    "שלום",
]


def test_every_token_has_its_color_and_its_text():
    values = np.arange(len(TOKENS), dtype=float)
    figure = text_heatmap(TOKENS, [Heatmap(values, "latent $7$"), Heatmap(-values, "b", "Blues")])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[0].startswith("latent $7$   0 … 10")
    assert texts[1:5] == ["The", " plum", " $x_1^", "$"]
    assert "<script>" in texts
    assert "⟨U+202E⟩" in texts
    boxes = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    expected = Heatmap(values).cells(len(TOKENS))
    assert [to_hex(color) for color in boxes[0].get_facecolors()] == [c for c, _ in expected]
    assert to_hex(boxes[1].get_facecolors()[0]) == to_hex(mpl.colormaps["Blues"](1.0))
    assert figures.text_heatmap is text_heatmap


def test_draws_any_characters_without_a_warning_and_never_as_markup():
    figure = text_heatmap(TOKENS, [Heatmap(np.ones(len(TOKENS)), "$caption")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("png", "svg"):
            figure.savefig(io.BytesIO(), format=kind, dpi=60)


def test_lines_are_as_long_as_asked():
    tokens = [" word"] * 30
    narrow = text_heatmap(tokens, [Heatmap(np.ones(30))], columns=30)
    wide = text_heatmap(tokens, [Heatmap(np.ones(30))], columns=100)
    assert narrow.get_figwidth() < wide.get_figwidth()
    assert narrow.get_figheight() > wide.get_figheight()
    assert len(narrow.axes[0].texts) == len(wide.axes[0].texts) == 31


def test_long_texts_end_with_a_remark():
    tokens = ["\n"] * (MOST_LINES + 5)
    figure = text_heatmap(tokens, [Heatmap(np.ones(len(tokens)), "unit")])
    texts = figure.axes[0].texts
    assert len(texts) == 1 + MOST_LINES
    assert f"the first {MOST_LINES} of {MOST_LINES + 5} lines" in texts[0].get_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [Heatmap([])]), "0 tokens and 1 series"),
        ((["a"], []), "1 tokens and 0 series"),
        ((["a"], [Heatmap([1.0, 2.0])]), "2,.* for 1 tokens"),
        ((["a"], [Heatmap([1.0])], 1), "columns is 1"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        text_heatmap(*arguments)
