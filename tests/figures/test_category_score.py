import io

import numpy as np
import pytest

from palinka import figures
from palinka.analyses import category_score

TARGETS = np.arange(40) % 5 == 0


def some_latents(latents=60, effect=30.0):
    random = np.random.default_rng(0)
    values = random.exponential(size=(40, latents)) * (random.random((40, latents)) < 0.3)
    values[TARGETS, 0] = effect
    return values


def drawn(figure):
    figure.savefig(io.BytesIO(), dpi=40)
    return figure


@pytest.mark.parametrize(
    ("latents", "options"),
    [(2, {}), (60, {"detector": True}), (60, {"permutations": 20}), (5000, {"permutations": 20})],
)
def test_draws_all_figures(latents, options):
    values = some_latents(latents)
    result = category_score(values, TARGETS, **options)
    every = figures.category_score(result, latents=values, tokens=["ignored"])
    assert set(every) == {"score"} | ({"auc"} if options else set())
    for figure in every.values():
        drawn(figure)


def test_scores_of_zero_stand_apart_and_the_best_is_named():
    result = category_score(some_latents(), TARGETS, permutations=50)
    axes = figures.category_score(result)["score"].axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), result.score[result.score > 0])
    assert axes.get_title(loc="left").startswith("latent 0 scores")
    assert "p ≤ 0.05" in axes.get_legend_handles_labels()[1]
    nothing = category_score(np.zeros((40, 3)), TARGETS, permutations=5)
    for figure in figures.category_score(nothing).values():
        drawn(figure)


def test_signed_units_are_remarked_upon():
    values = np.random.default_rng(0).normal(size=(40, 9))
    figure = figures.category_score(category_score(values, TARGETS), units="units")["score"]
    assert "signed" in figure.get_suptitle()
    assert not figures.category_score(category_score(abs(values), TARGETS))["score"].get_suptitle()
