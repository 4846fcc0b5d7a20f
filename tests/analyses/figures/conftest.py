import io

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg


@pytest.fixture
def save():
    """Draw a figure in full, once, where `savefig` would do it twice, and return it."""

    def draw(figure):
        dpi = figure.dpi
        figure.dpi = 40
        FigureCanvasAgg(figure).print_png(io.BytesIO())
        figure.dpi = dpi
        return figure

    return draw
