import pytest
from matplotlib.figure import Figure

from palinka.analyses.figures.style import captioned


def test_each_figure_gets_its_own() -> None:
    figures = {"a": Figure(), "b": Figure()}
    assert captioned(figures, {"a": "One.", "b": "Two.", "c": "Three."}) is figures
    assert [figure.get_label() for figure in figures.values()] == ["One.", "Two."]


def test_none_is_forgotten() -> None:
    with pytest.raises(KeyError, match="b"):
        captioned({"a": Figure(), "b": Figure()}, {"a": "One."})
