import io
from importlib import import_module

import numpy as np
import pytest

from palinka import figures
from palinka.analyses import category_score, latent_statistics
from palinka.errors import InputError

TARGETS = np.arange(40) % 5 == 0
TOKENS = [f" word{token}" for token in range(40)]


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
    every = figures.category_score(result, latents=values, tokens=TOKENS, conditions=("a", "b"))
    assert set(every) == {"score", "heatmaps"} | ({"auc"} if options else set())
    for figure in every.values():
        drawn(figure)
    assert set(figures.category_score(result)) == set(every) - {"heatmaps"}


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


@pytest.mark.parametrize("by", ["score", "auc", "density", "activation", "mass"])
def test_heatmaps_are_of_the_latents_at_the_ranks_asked_for(by):
    values = some_latents()
    result = category_score(values, TARGETS, detector=True)
    statistics = latent_statistics(values)
    criterion = getattr(result, by, None) if by in ("score", "auc") else getattr(statistics, by)
    order = np.argsort(-criterion, kind="stable")
    chosen = import_module("palinka.figures.category_score").chosen_heatmaps(
        result, latents=values, tokens=TOKENS, by=by, ranks=(1, 4), numbers=(9,)
    )
    captions = [heatmap.caption for heatmap in chosen]
    assert captions[0].startswith(f"latent {order[0]}: rank 1 by {by}")
    assert captions[1].startswith(f"latent {order[3]}: rank 4 by {by}")
    assert captions[2].startswith("latent 9: rank ")
    np.testing.assert_array_equal(chosen[1].values, values[:, order[3]])
    assert chosen[0].exponent == 2.0


def test_heatmaps_are_drawn_on_any_text():
    values = some_latents()
    result = category_score(values, TARGETS)
    passage = np.arange(3 * 60, dtype=float).reshape(3, 60)
    context = {"latents": values, "tokens": ["<i>", "b", "c"], "passage": passage, "ranks": (1,)}
    texts = figures.category_score(result, **context)["heatmaps"].axes[0].texts
    assert [text.get_text() for text in texts[1:]] == ["<i>", "b", "c"]
    pages = import_module("palinka.figures.category_score").pages
    html = pages(result, token_ids=[5, 6, 7], **context)["heatmaps"]
    assert "&lt;i&gt;" in html
    assert f"{passage[1, 0]:g} · token 1 · id 6" in html
    assert pages(result) == {}


def test_refuses_an_unknown_criterion():
    values = some_latents()
    result = category_score(values, TARGETS)
    for by in ("auc", "beauty"):
        with pytest.raises(InputError, match=f"ranked by '{by}'"):
            figures.category_score(result, latents=values, tokens=TOKENS, by=by)
