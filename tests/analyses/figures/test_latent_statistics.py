import numpy as np
import pytest

from palinka.analyses import figures, latent_statistics


def some_latents(latents):
    random = np.random.default_rng(0)
    values = random.exponential(size=(30, latents)) * (random.random((30, latents)) < 0.2)
    values[:, 1::7] = 0.0
    return values.astype(np.float32)


@pytest.mark.parametrize("latents", [1, 50, 5000])
def test_draws_all_figures(latents, save):
    values = some_latents(latents)
    result = latent_statistics(values)
    drawn = figures.latent_statistics(result, latents=values)
    assert set(drawn) == {"density", "activation", "density_by_activation", "latents_by_token"}
    title = drawn["density"].get_suptitle().replace("\n", " ")
    assert f"active: {(~result.dead).sum():,} of {latents:,} latents, " in title
    assert title.endswith(" %, on these 30 tokens")
    for figure in drawn.values():
        save(figure)
    axes = drawn["latents_by_token"].axes[0]
    order = [int(label.get_text()) for label in axes.get_xticklabels()]
    assert np.all(np.diff(result.density[order]) <= 0)
    np.testing.assert_array_equal(axes.images[0].get_array(), values[:, order])


def test_dead_latents_stand_apart():
    result = latent_statistics(some_latents(50))
    axes = figures.latent_statistics(result, units="units")["density"].axes[0]
    alive, dead = axes.lines
    assert dead.get_label() == f"silent ({result.dead.sum()})"
    np.testing.assert_array_equal(dead.get_xdata(), np.flatnonzero(result.dead))
    np.testing.assert_array_equal(alive.get_xdata(), np.flatnonzero(~result.dead))
    np.testing.assert_array_equal(alive.get_ydata(), result.density[~result.dead])
    assert axes.get_xlabel() == "number of the unit"


def test_no_latent_alive_is_drawn_too(save):
    for figure in figures.latent_statistics(latent_statistics(np.zeros((3, 4)))).values():
        save(figure)


def test_the_density_of_neurons_is_not_drawn():
    values = np.random.default_rng(0).normal(size=(30, 8))
    drawn = figures.latent_statistics(latent_statistics(values), latents=values, units="units")
    assert set(drawn) == {"activation"}
