import numpy as np
import pytest

from palinka.analyses import figures
from palinka.errors import InputError

NAMES = ["total", "reconstruction", "sparsity"]


@pytest.mark.parametrize("points", [0, 1, 400])
def test_every_loss_has_its_panel(points, save):
    steps = np.arange(points)
    figure = save(figures.loss_curves(dict.fromkeys(NAMES, (steps, steps - 1.0)))["losses"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == NAMES
    for axes in figure.axes:
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), steps - 1.0)
        assert axes.get_yscale() == "linear"  # some losses are negative


@pytest.mark.parametrize("points", [200, 225])  # means of 8 and of 9
@pytest.mark.parametrize("spacing", [1, 2])
def test_noise_is_smoothed_without_a_shift(points, spacing):
    steps = np.arange(points) ** spacing
    axes = figures.loss_curves({"total": (steps, 5.0 + steps / 100)})["losses"].axes[0]
    smooth = axes.lines[1]
    assert smooth.get_ydata() == pytest.approx(5.0 + smooth.get_xdata() / 100)


def test_no_losses_are_rejected():
    with pytest.raises(InputError, match="no losses"):
        figures.loss_curves({})
