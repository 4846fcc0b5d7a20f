import numpy as np
import pytest

from palinka.analyses import figures, lesion

N, DRAWS = 12, 40
DOSES = (1, 5, 20)


def result(sites=4, doses=DOSES, preferred=None, missing=False):
    """Controls without effect; the third site's selected units lower the outcome."""
    random = np.random.default_rng(0)
    clean, corrupted = 2.0 + random.random(N), -1.0 - random.random(N)
    lesioned = clean + 0.1 * random.normal(size=(sites, len(doses), 1 + DRAWS, N))
    lesioned[min(2, sites - 1), :, 0] -= 0.1 * np.array(doses)[:, None]
    if missing:
        lesioned[0] = np.nan
    units = np.tile(np.arange(doses[-1]), (sites, 1))
    axes = {"": {"layer": list(range(3, 3 + sites))}}
    given = {"units": units, "doses": doses, "preferred": preferred, "axes": axes}
    return lesion(lesioned, clean, corrupted, **given)


def test_profile_has_effects_over_the_band_of_controls(save):
    found = result(missing=True)
    figure = save(figures.lesion(found, units="neurons")["profile"])
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_array_equal(lines["selected"].get_ydata(), found.effect)
    (points,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert points.get_xdata().tolist() == [2]
    band = axes.collections[0].get_paths()[0].vertices
    expected = np.quantile(found.null[2], [0.025, 0.975])
    assert np.isclose(band[band[:, 0] == 2][:, 1], expected[0]).any()
    assert np.isclose(band[band[:, 0] == 2][:, 1], expected[1]).any()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["3", "4", "5", "6"]
    assert figure.get_suptitle().startswith("Lesion of 20 neurons by layer")


def test_effects_by_answer_are_two_curves(save):
    found = result(preferred=np.arange(N) < 5)
    figure = save(figures.lesion(found)["profile"])
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    np.testing.assert_array_equal(lines["preferred answer"], found.effect_preferred)
    np.testing.assert_array_equal(lines["other"], found.effect_other)


@pytest.mark.parametrize("sites", [1, 4])
def test_effect_is_marked_among_those_of_its_controls(sites, save):
    found = result(sites)
    drawn = figures.lesion(found)
    assert set(drawn) == {"null", "dose"} | ({"profile"} if sites > 1 else set())
    (axes,) = save(drawn["null"]).axes
    assert sum(bar.get_height() for bar in axes.patches) == DRAWS
    (line,) = axes.lines
    assert set(line.get_xdata()) == {found.effect[min(2, sites - 1)]}
    title = drawn["null"].get_suptitle()
    assert ("corrected for 4 sites" in title.replace("\n", " ")) == (sites > 1)


def test_dose_has_effects_over_the_band_of_controls(save):
    found = result()
    (axes,) = save(figures.lesion(found)["dose"]).axes
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_array_equal(lines["selected"].get_ydata(), found.dose_effect[2])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "5", "20"]
    assert "dose" not in figures.lesion(result(doses=(20,)))
