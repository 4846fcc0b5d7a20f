import io

import pytest


@pytest.fixture
def save():
    """Draw a figure in full, and return it."""

    def draw(figure):
        figure.savefig(io.BytesIO(), dpi=40)
        return figure

    return draw
