import numpy as np
import pytest
from matplotlib.collections import LineCollection

from palinka.analyses import activation_patching, figures
from palinka.analyses.figures.activation_patching import panels

ROLES = ["s1", "s2", "end"]
AXES = {
    "resid": {"layer": range(4), "position": ROLES},
    "heads": {"layer": range(4), "head": range(5)},
}


def patched(direction="denoise", outcome="logit_difference"):
    """Clean everywhere from layer 2 on at the last position, and in one head in part."""
    random = np.random.default_rng(0)
    clean, corrupted = 2.0 + random.random(10), -1.0 - random.random(10)
    share = {name: np.zeros([len(x) for x in axes.values()]) for name, axes in AXES.items()}
    share["resid"][2:, 2], share["heads"][1, 3] = 1.0, -0.4
    start, end = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    cells = {name: start + s[..., None] * (end - start) for name, s in share.items()}
    options = {"axes": AXES, "direction": direction, "outcome": outcome}
    return activation_patching(cells, clean, corrupted, **options), share


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_maps_show_the_moved_part_of_the_gap_at_one_scale(direction, save):
    result, share = patched(direction)
    figure = figures.activation_patching(result)["map"]
    save(figure)
    for axes, expected in zip(figure.axes, share.values(), strict=False):
        image = axes.images[0]
        np.testing.assert_allclose(image.get_array(), expected, atol=1e-12)
        np.testing.assert_allclose(image.get_clim(), (-1.0, 1.0))
    assert [axes.get_title("left") for axes in figure.axes[:2]] == ["residual stream", "heads"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ROLES
    assert figure.axes[1].get_ylabel() == "layer"
    assert figure.get_figwidth() == pytest.approx(3.54)


def test_significant_cells_are_outlined_as_regions():
    figure = figures.activation_patching(patched()[0])["map"]
    lines = [[c for c in a.collections if isinstance(c, LineCollection)] for a in figure.axes[:2]]
    outline = {tuple(map(tuple, path)) for path in lines[0][-1].get_segments()}
    x, low, middle, high = 1.5, 1.5, 2.5, 3.5
    sides = {((at, low), (at, middle)) for at in (x, x + 1)}
    sides |= {((at, middle), (at, high)) for at in (x, x + 1)}
    assert outline == sides | {((x, low), (x + 1, low)), ((x, high), (x + 1, high))}
    assert len(lines[1][-1].get_segments()) == 4


def test_without_a_test_nothing_is_said_of_outlines():
    tested = figures.activation_patching(patched()[0])["map"].get_suptitle()
    assert "(outlined: p ≤ 0.05" in tested.replace("\n", " ")
    cells = np.random.default_rng(0).normal(size=(4, 3, 8))
    result = activation_patching(cells, np.ones(8), -np.ones(8), permutations=0)
    assert "outlined" not in figures.activation_patching(result)["map"].get_suptitle()


def test_lines_lie_between_the_baselines():
    result, _ = patched("noise")
    (axes,) = figures.activation_patching(result)["layers"].axes
    lines = {line.get_label(): line for line in axes.lines}
    expected = [result.clean, result.clean, result.corrupted, result.corrupted]
    np.testing.assert_allclose(lines["end"].get_ydata(), expected)
    assert lines["end"].get_markevery() == [False, False, True, True]
    assert not any(lines["s1"].get_markevery())
    assert {text.get_text() for text in axes.texts} == {"clean", "corrupted"}


def test_without_recovery_the_effects_are_drawn():
    result, _ = patched(outcome="probability")
    figure = figures.activation_patching(result)["map"]
    effect = result.maps(result.effect)["heads"]
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), effect)
    assert figure.axes[-1].get_xlabel() == "effect on the probability"


def test_further_axes_are_panels():
    random = np.random.default_rng(0)
    axes = {"heads": {"layer": range(2), "position": ["s2", "end"], "head": range(3)}}
    cells = {"heads": random.normal(size=(2, 2, 3, 8)), "latents": random.normal(size=(4, 8))}
    axes["latents"] = {"latent": [7, 1, 12, 3]}
    result = activation_patching(cells, np.ones(8), -np.ones(8), axes=axes)
    found = panels(result)
    assert [panel.title for panel in found] == ["heads, s2", "heads, end", "latents"]
    assert found[1].cells.tolist() == [[3, 4, 5], [9, 10, 11]]
    order = np.argsort(np.abs(result.effect[12:]))  # the largest on top
    assert found[2].cells.tolist() == (12 + order)[:, None].tolist()
    assert found[2].rows == ("latent", [str([7, 1, 12, 3][i]) for i in order])
    assert set(figures.activation_patching(result)) == {"map"}


def test_of_many_units_the_largest_are_rows():
    cells = {"latents": np.random.default_rng(0).normal(size=(2, 90, 8))}
    axes = {"latents": {"value": ["zero", "mean"], "latent": range(90)}}
    result = activation_patching(cells, np.ones(8), -np.ones(8), axes=axes)
    (panel,) = panels(result)
    assert panel.rows[0] == "latent (24 of 90)"
    assert panel.columns == ("value", ["zero", "mean"])
    largest = np.abs(result.effect.reshape(2, 90)).max(0)
    np.testing.assert_array_equal(panel.rows[1], np.argsort(largest)[-24:].astype(str))
    np.testing.assert_array_equal(panel.cells % 90, np.argsort(largest)[-24:, None].repeat(2, 1))
