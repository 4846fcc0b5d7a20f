import numpy as np
import pytest

from palinka.analyses import ablation, figures

AXES = {"heads": {"value": ["zero", "mean"], "layer": range(3), "head": range(4)}}


@pytest.fixture(scope="module")
def result():
    """Half of the effect of head 2.1 is repaired, and is less by the mean."""
    random = np.random.default_rng(0)
    clean, noise = 3.0 + random.random(10), 0.1 * random.normal(size=(2, 3, 4, 10))
    direct = 0.01 * noise
    direct[0, 2, 1], direct[1, 2, 1] = -2.0, -1.0
    options = {"axes": AXES, "direct": {"heads": direct}}
    return ablation({"heads": clean + 0.5 * direct + noise}, clean, -clean, **options)


def test_maps_of_each_value_have_one_scale(result, save):
    figure = figures.ablation(result)["map"]
    save(figure)
    maps = result.maps(result.effect)["heads"]
    limit = np.abs(maps).max()
    for axes, values, name in zip(figure.axes, maps, ("zero", "mean"), strict=False):
        np.testing.assert_array_equal(axes.images[0].get_array(), values)
        assert axes.images[0].get_clim() == (-limit, limit)
        assert axes.get_title("left") == f"heads, {name}"


def test_histograms_count_every_cell(result):
    (axes,) = figures.ablation(result)["effects"].axes
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["zero", "mean"]
    for patch in axes.patches:
        x, y = patch.get_xy().T
        assert np.diff(x) @ y[:-1] == pytest.approx(12 * np.ptp(result.effect) / 40, rel=0.01)
    assert axes.get_xlabel() == "effect on the logit difference (logits)"


def test_points_are_means_of_the_two_values_or_effects(result, save):
    every = figures.ablation(result)
    zero, mean = result.maps(result.effect)["heads"]
    (axes,) = every["values"].axes
    save(every["values"])
    points = np.concatenate([line.get_xydata() for line in axes.lines if line.get_marker() in "oD"])
    expected = np.stack([mean.ravel(), zero.ravel()], axis=1)
    np.testing.assert_allclose(np.sort(points, axis=0), np.sort(expected, axis=0))
    assert [text.get_text() for text in axes.texts] == ["heads 2.1"]
    assert axes.get_xlabel() == "effect, mean (logits)"
    first = every["indirect_effect"].axes[0]
    (strong,) = (line.get_xydata() for line in first.lines if line.get_marker() == "D")
    np.testing.assert_allclose(strong, [[-2.0, zero[2, 1]]])
    assert [text.get_text() for text in first.texts] == ["heads 2.1"]


def test_one_value_without_direct_effects_has_two_figures():
    random = np.random.default_rng(0)
    result = ablation(random.normal(size=(1, 3, 4, 8)), np.ones(8), -np.ones(8))
    assert set(figures.ablation(result)) == {"map", "effects"}
