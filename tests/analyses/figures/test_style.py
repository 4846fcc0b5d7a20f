from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest

from palinka.analyses.figures import style


@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_names_of_crowded_points_stand_apart_with_a_line_to_their_own(scale):
    x, y = np.random.default_rng(3).normal(size=(2, 200))
    x[:6], y[:6] = 3.0 + np.arange(6) / 50, 3.0 - np.arange(6) / 50
    names = [f"{i} $x" for i in range(200)]

    @style.captioned(points="Points.")
    def draw():
        figure, axes = style.new_figure()
        style.draw_points(axes, x, y)
        style.name_points(axes, x, y, [*range(6), 0], names)
        axes.set(yscale=scale, title="a title\nof two lines")  # the place of the points changes
        return {"points": figure}

    figure = draw()["points"]
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == names[:6]
    texts = [mpl.text.Text.get_window_extent(text) for text in axes.texts]
    for i, box in enumerate(texts):
        assert axes.bbox.padded(1.0).contains(box.x0, box.y0)
        assert axes.bbox.padded(1.0).contains(box.x1, box.y1)
        assert not any(box.overlaps(other) for other in texts[:i])
        ends = axes.texts[i].arrow_patch.get_path().vertices
        own = axes.transData.transform((x[i], y[i]))
        assert np.linalg.norm(ends - own, axis=1).min() < 5.0, "the line ends at its point"


def test_numbers_of_a_drawn_figure_stay_formulas_and_names_do_not():
    @style.captioned(points="Points.")
    def draw():
        figure, axes = style.new_figure()
        style.draw_points(axes, np.array([-200.0, 300.0]), np.array([1.0, 2.0]))
        style.name_points(axes, np.arange(2.0), np.arange(2.0), [1], ["$a$", "$b$"])
        axes.set_xscale("symlog")
        axes.set_xlabel("$x$")
        return {"points": figure}

    figure = draw()["points"]
    style.plain_text(figure)  # as of a figure that an analysis has drawn already
    (axes,) = figure.axes
    numbers = [text for text in axes.get_xticklabels() if text.get_text()]
    assert len(numbers) > 2
    assert all(text.get_parse_math() for text in numbers)
    assert not any(text.get_parse_math() for text in (*axes.texts, axes.xaxis.label))


@pytest.mark.parametrize(
    ("low", "high"), [(1.05, 1.4), (1.1, 2.3), (18.2, 26.9), (0.9, 6.0), (1, 110)]
)
def test_numbers_of_a_short_logarithmic_axis_do_not_overlap(low: float, high: float) -> None:
    with style.style():
        figure, panels = style.new_figure(style.WIDTH, 2.0, ncols=3)
        for axes in panels:
            axes.plot([low, high], [0, 1])
            axes.set(xscale="log")
            style.plain_log(axes.xaxis)
        figure.draw_without_rendering()
    shown = panels[0].get_xticklabels()
    inside = [each.get_window_extent() for each in shown if low <= each.get_position()[0] <= high]
    assert len(inside) >= 2
    assert all(a.x1 < b.x0 for a, b in pairwise(inside))
