import numpy as np
import pytest

from palinka.analyses import attribution_patching, figures

AXES = {
    "resid": {"layer": range(4), "position": ["subject", "end"]},
    "heads": {"layer": range(4), "head": range(5)},
}


@pytest.fixture
def result():
    """Estimates of two components; one patch was not run, and one estimate is far off."""
    random = np.random.default_rng(0)
    clean, corrupted = 2.0 + random.random(10), -1.0 - random.random(10)
    share = {name: random.normal(size=list(map(len, x.values()))) for name, x in AXES.items()}
    exact = {name: corrupted + s[..., None] * (clean - corrupted) for name, s in share.items()}
    estimated = {name: x + 0.2 * random.normal(size=x.shape) for name, x in exact.items()}
    exact["heads"][1, 3] = np.nan
    estimated["resid"][2, 1] += 5.0
    return attribution_patching(estimated, clean, corrupted, exact, axes=AXES)


def test_estimates_are_beside_the_exact_effects_at_one_scale(result, save):
    figure = save(figures.attribution_patching(result)["map"])
    expected = [result.maps(x)[name] for name in AXES for x in (result.estimate, result.exact)]
    for axes, values in zip(figure.axes, expected, strict=False):
        np.testing.assert_allclose(axes.images[0].get_array().filled(np.nan), values)
        limit = max(np.abs(result.estimate).max(), np.nanmax(np.abs(result.exact)))
        np.testing.assert_allclose(axes.images[0].get_clim(), (-limit, limit))
    titles = [axes.get_title("left") for axes in figure.axes[:4]]
    parts = ("residual stream", "heads")
    assert titles == [f"{part}: {what}" for part in parts for what in ("estimate", "exact")]
    title = figure.get_suptitle().replace("\n", " ")
    rule = "p ≤ 0.05 over 10 prompts, corrected for 28 cells"
    assert title.endswith(f"(outlined: {rule}; gray: not run)")


def test_estimates_are_drawn_against_exact_effects(result, save):
    figure = save(figures.attribution_patching(result)["agreement"])
    (axes,) = figure.axes
    points = {line.get_label(): line.get_xydata() for line in axes.lines}
    run = np.isfinite(result.exact[8:])
    expected = np.stack([result.estimate[8:][run], result.exact[8:][run]], axis=1)
    np.testing.assert_allclose(points["heads"], expected)
    assert "resid 2.end" in {text.get_text() for text in axes.texts}


def test_without_patches_there_are_maps_alone(result):
    random = np.random.default_rng(0)
    given = random.normal(size=(3, 2, 8)), 2.0 + random.random(8), -1.0 - random.random(8)
    drawn = figures.attribution_patching(attribution_patching(*given, permutations=0))
    assert set(drawn) == {"map"}
    assert drawn["map"].get_suptitle().replace("\n", " ").endswith("gradients (gray: not run)")
