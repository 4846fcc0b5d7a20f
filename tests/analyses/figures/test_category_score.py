import numpy as np

from palinka.analyses import category_score, figures

TARGETS = np.isin(np.arange(40), [2, 3, 7, 15, 20, 22, 31, 38])


def some_latents(latents=60, effect=30.0):
    random = np.random.default_rng(0)
    values = random.exponential(size=(40, latents)) * (random.random((40, latents)) < 0.3)
    values[TARGETS, 0] = effect
    return values


def test_scores_of_zero_stand_apart_and_the_best_is_named(save):
    result = category_score(some_latents(), TARGETS, permutations=50)
    axes = figures.category_score(result)["score"].axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), result.score[result.score > 0])
    title = f"latent 0 scores {result.score.max():.3g}, p = 0.025"
    assert axes.get_title(loc="left") == f"{title}\n{(result.score == 0).sum()} score 0 (gray)"
    # Whatever is above the dashed line, and nothing else, is significant.
    (bound,) = {line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"}
    np.testing.assert_array_equal(result.score > bound, result.p_value <= 0.05)
    # Ticks are numbers, not powers of ten.
    assert axes.yaxis.get_major_formatter()(0.5) == "0.5"
    nothing = category_score(np.zeros((40, 3)), TARGETS, permutations=5)
    assert list(figures.category_score(nothing)) == ["auc"]
    save(figures.category_score(nothing)["auc"])


def test_the_best_detector_is_ringed_and_the_exchange_is_stated():
    values = some_latents()
    values[TARGETS.nonzero()[0][0], 0] = 0.0
    values[:, 9] = TARGETS  # score 0
    result = category_score(values, TARGETS, permutations=50)
    figure = figures.category_score(result, category="plums")["auc"]
    (axes,) = figure.axes
    rings = [line.get_ydata()[0] for line in axes.lines if line.get_markersize() == 8]
    assert rings == [result.auc[0], result.auc[9]] == [result.auc[0], 1.0]
    assert axes.get_title(loc="left").endswith("latent 9 has AUC 1, p = 0.025")
    assert figure.get_suptitle() == "Preference of latents for plums (dashed: p = 0.05)"
    plain = figures.category_score(category_score(values, TARGETS), category="plums")["score"]
    assert plain.get_suptitle() == "Preference of latents for plums"
    assert figure.get_supxlabel().replace("\n", " ") == result.notes[0]
