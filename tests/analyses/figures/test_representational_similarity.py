import numpy as np
import pytest
from matplotlib.text import Text

from palinka import analyses
from palinka.analyses import figures
from palinka.analyses.figures.representational_similarity import overview


def found(items=12, groups=("a", "b"), shared=0.0, **options):
    x, y = np.random.default_rng(0).normal(size=(2, items, 5))
    y += shared * x
    labels = None if groups is None else [groups[i % len(groups)] for i in range(items)]
    return analyses.representational_similarity(x, y, groups=labels, **options)


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_words_of_a_group_stand_together_with_their_own_similarities():
    result = found(groups=("a", "b"))
    drawn = figures.representational_similarity(result, items=list("ABCDEFGHIJKL"))
    axes = drawn["similarity"].axes[0]
    for panel in drawn["similarity"].axes[:2]:
        for labels in (panel.get_xticklabels(), panel.get_yticklabels()):
            assert [label.get_text() for label in labels] == list("ACEGIKBDFHJL")
    image = axes.images[0].get_array()
    assert image[0, 1] == result.similarity_x[0, 2]
    assert image[1, 6] == result.similarity_x[2, 1]
    mask, similar, _ = drawn["groups"].axes
    np.testing.assert_array_equal(mask.images[0].get_array()[:6, :6], 1)
    np.testing.assert_array_equal(mask.images[0].get_array()[6:, :6], 0)
    others, own = similar.lines  # a smaller mark, drawn later, hides none
    assert own.get_markersize() < others.get_markersize()
    # Word E is the third; its own group are the words at even places.
    others, own = (line.get_xdata()[2] for line in similar.lines)
    assert own == pytest.approx(np.mean([result.similarity_x[4, i] for i in (0, 2, 6, 8, 10)]))
    assert others == pytest.approx(np.mean([result.similarity_x[4, i] for i in range(1, 12, 2)]))


def test_both_sites_have_scales_of_their_own_and_white_is_zero():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 12, 5)) + np.array([0.0, 9.0])[:, None, None]
    drawn = figures.representational_similarity(analyses.representational_similarity(x, y))
    (low, high), narrow = (axes.images[0].get_clim() for axes in drawn["similarity"].axes[:2])
    assert low == -high < 0 < 0.9 < narrow[0] < narrow[1] < 1


def test_the_null_has_the_observed_score_and_the_bound_of_chance():
    result = found(permutations=99)
    axes = figures.representational_similarity(result)["null"].axes[0]
    observed, bound = (line.get_xdata()[0] for line in axes.lines)
    assert observed == result.score
    assert (1 + (result.null > bound).sum()) / 100 <= 0.05 < (1 + (result.null >= bound).sum()) / 99


def test_several_pairs_are_a_curve_or_a_matrix(save):
    results = [found(permutations=20, shared=shared) for shared in (0.0, 1.0, 2.0)]
    layers = {f"{i}": (f"blocks.{i}.attn.q", f"blocks.{i}.attn.k") for i in (0, 2, 5)}
    curve = overview(dict(zip(layers, results, strict=True)), sites=layers)["scores"].axes[0]
    line = next(line for line in curve.lines if line.get_label() == "all words")
    assert list(line.get_xdata()) == [0, 2, 5]
    assert list(line.get_ydata()) == [result.score for result in results]
    assert curve.get_title(loc="left") == "blocks.i.attn.q and blocks.i.attn.k"
    names = [("hidden.0", "hidden.1"), ("hidden.0", "hidden.2"), ("hidden.1", "hidden.2")]
    pairs = {"/".join(pair): pair for pair in names}
    figure = overview(dict(zip(pairs, results, strict=True)), sites=pairs)["scores"]
    matrix = np.asarray(figure.axes[0].images[0].get_array())
    scores = [result.score for result in results]
    assert [matrix[0, 1], matrix[0, 2], matrix[1, 2], matrix[2, 1]] == [*scores, scores[2]]
    crosses = sorted(tuple(line.get_xdata()) for line in figure.axes[0].lines)
    assert crosses == [(0, 1)]  # unrelated sites
    save(figure)


def test_words_are_never_markup(save):
    words = ["$", "$x^", "a$b$", "<b>", r"\frac"]
    result = found(items=15, groups=words, permutations=20)
    drawn = figures.representational_similarity(result, items=words * 3, sites=("$x^", "y"))
    for name in ("groups", "similarity", "comparison", "null"):
        texts = texts_of(save(drawn[name]))
        shown = words if name in ("groups", "similarity") else words[1:2]
        assert all(any(word in text for text in texts) for word in shown), name


def test_many_words_keep_readable_labels():
    result = found(items=200, groups=("a", "b", "c"))
    drawn = figures.representational_similarity(result, items=[f"word {i}" for i in range(200)])
    assert len(drawn["similarity"].axes[0].get_xticklabels()) <= 60
    assert max(drawn["similarity"].get_size_inches()) < 20


def test_undefined_scores_are_drawn_as_such():
    x, y = np.random.default_rng(1).normal(size=(2, 5, 4))
    result = analyses.representational_similarity(x, y, groups=list("aaabb"))
    drawn = figures.representational_similarity(result)
    assert "b: no score" in texts_of(drawn["comparison"])
