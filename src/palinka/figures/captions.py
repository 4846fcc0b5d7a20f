"""What a figure shows, in words that travel with it."""

from collections.abc import Mapping

from matplotlib.figure import Figure


def captioned(figures: dict[str, Figure], captions: Mapping[str, str]) -> dict[str, Figure]:
    """Give each figure its caption, which findings, TensorBoard and the atlas show beside it.

    A figure's caption is its label, as of any artist of matplotlib: `figure.get_label()`.

    Args:
        figures: Figures by name.
        captions: What each shows and how to read it, by the same name; there may be more.

    Returns:
        The same figures.

    Raises:
        KeyError: If a figure has no caption.
    """
    for name, figure in figures.items():
        figure.set_label(captions[name])
    return figures
