import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from palinka.analyses.figures.text_heatmap import Heatmap, readable_on, scaled
from palinka.errors import InputError


def test_values_are_scaled_over_the_text_and_squared():
    values = np.array([2.0, 4.0, 6.0])
    assert scaled(values, 1.0).tolist() == [0, 0.5, 1]
    assert scaled(values, 2.0).tolist() == [0, 0.25, 1]
    assert scaled(-values, 1.0).tolist() == [1, 0.5, 0]
    assert scaled(np.full(3, 7.0), 2.0).tolist() == [0, 0, 0]


def test_colors_follow_the_color_map():
    backgrounds = [cell[0] for cell in Heatmap([1.0, 2.0, 3.0], colors="Blues").cells(3)]
    expected = [to_hex(mpl.colormaps["Blues"](level)) for level in (0.0, 0.25, 1.0)]
    assert backgrounds == expected
    assert Heatmap([0, 1]).cells(2)[1][0] == to_hex(mpl.colormaps["Reds"](1.0))
    units = Heatmap([1.0, 2.0, 3.0], exponent=1.0).cells(3)
    assert units[1][0] == to_hex(mpl.colormaps["Reds"](0.5))


@pytest.mark.parametrize("colors", ["Reds", "Blues"])
def test_text_can_be_read_on_every_shade(colors):
    def luminance(color):
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for shade in mpl.colormaps[colors](np.linspace(0, 1, 64))[:, :3]:
        pair = sorted((luminance(shade), luminance(to_rgb(readable_on(shade)))))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], r"heatmap 'unit 3' has values of the shape \(2,\) for 3 tokens"),
        ([1.0, np.nan, 2.0], "'unit 3' holds NaN"),
    ],
)
def test_bad_input(values, message):
    with pytest.raises(InputError, match=message):
        Heatmap(values, "unit 3").numbers(3)
