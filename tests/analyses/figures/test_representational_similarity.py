import numpy as np
import pytest
from matplotlib.text import Text

from palinka import analyses
from palinka.analyses import figures


def found(items=12, groups=("a", "b"), **options):
    x, y = np.random.default_rng(0).normal(size=(2, items, 5))
    labels = None if groups is None else [groups[i % len(groups)] for i in range(items)]
    return analyses.representational_similarity(x, y, groups=labels, **options)


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_words_of_a_group_stand_together_with_their_own_similarities():
    result = found(groups=("a", "b"))
    drawn = figures.representational_similarity(result, items=list("ABCDEFGHIJKL"))
    axes = drawn["similarity"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list("ACEGIKBDFHJL")
    image = axes.images[0].get_array()
    assert image[0, 1] == result.similarity_x[0, 2]
    assert image[1, 6] == result.similarity_x[2, 1]
    mask = drawn["groups"].axes[0].images[0].get_array()
    np.testing.assert_array_equal(mask[:6, :6], 1)
    np.testing.assert_array_equal(mask[6:, :6], 0)


@pytest.mark.parametrize("word", ["$", "$x^", "a$b$", "<b>", r"\frac"])
def test_words_are_never_markup(word, save):
    result = found(items=9, groups=(word, "b", "c"))
    drawn = figures.representational_similarity(result, items=[word] * 9, sites=(word, "y"))
    for name in ("groups", "similarity", "comparison"):
        assert any(word in text for text in texts_of(save(drawn[name])))


def test_many_words_keep_readable_labels():
    result = found(items=200, groups=("a", "b", "c"))
    drawn = figures.representational_similarity(result, items=[f"word {i}" for i in range(200)])
    assert len(drawn["similarity"].axes[0].get_xticklabels()) <= 60
    assert max(drawn["similarity"].get_size_inches()) < 20


def test_undefined_scores_are_drawn_as_such():
    x, y = np.random.default_rng(1).normal(size=(2, 5, 4))
    result = analyses.representational_similarity(x, y, groups=list("aaabb"))
    drawn = figures.representational_similarity(result)
    assert "b\nno score" in texts_of(drawn["comparison"])
