import numpy as np
import pytest

from palinka.analyses.figures.head_scores import head_scores as draw
from palinka.analyses.head_scores import head_scores


@pytest.fixture(scope="module")
def result():
    """Head 1 of layer 2 attends to the previous token, and head 0 of layer 4 far back."""
    random = np.random.default_rng(0)
    counts = np.full(9, 10.0)
    sums = {name: 3 + 0.1 * random.random((5, 2, 9)) for name in ("previous_token", "sink")}
    sums["previous_token"][2, 1] += 4
    sums["distance"] = 30 * random.random((5, 2, 9))
    sums["distance"][4, 0] += 2000
    reference = {name: np.full(9, 3.2) for name in sums}
    return head_scores(sums, dict.fromkeys(sums, counts), reference)


def test_maps_outline_significant_heads(result, save):
    figure = save(draw(result)["maps"])
    titles = [axes.get_title("left") for axes in figure.axes if axes.images]
    previous, far = (result.scores[name].score for name in ("previous_token", "distance"))
    assert titles[0] == f"Previous token\n{previous[2, 1]:.3g} in L2H1"
    assert titles[2] == f"Distance\n{far[4, 0]:.0f} in L4H0"
    first, sink, _ = (axes for axes in figure.axes if axes.images)
    np.testing.assert_allclose(first.images[0].get_array(), previous)
    assert first.images[0].get_clim() == (0.0, previous.max())
    assert (first.get_xlabel(), first.get_ylabel()) == ("head", "layer")
    assert first.get_ylim() == (-0.5, 4.5)  # the first layer is at the bottom
    assert figure.get_figwidth() <= 3.54
    assert result.scores["previous_token"].significant.sum() == 1
    outline = first.collections[-1]
    x, y = np.concatenate([path.vertices for path in outline.get_paths()]).T
    # The line runs around the cell of layer 2 and head 1, and nowhere else.
    assert (x.min(), x.max()) == (0.5, 1.5)
    assert (y.min(), y.max()) == (1.5, 2.5)
    assert not sink.collections


def test_every_head_has_its_point_in_its_layer(result, save):
    axes = save(draw(result)["by_layer"]).axes[0]
    rest, significant, mean, reference = axes.lines
    assert significant.get_xdata().tolist() == [2]
    assert significant.get_ydata()[0] == result.scores["previous_token"].score[2, 1]
    assert sorted(rest.get_xdata()) == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    np.testing.assert_allclose(mean.get_ydata()[2], result.scores["previous_token"].score[2].mean())
    assert reference.get_ydata() == pytest.approx(0.32)


@pytest.mark.parametrize("count", [6, 70])
def test_patterns_of_the_strongest_heads(result, save, count):
    pattern = np.tril(np.ones((count, count)))
    pattern /= pattern.sum(axis=1, keepdims=True)
    heads = result.strongest_heads()
    assert set(heads) == {"previous_token", "sink"}
    tokens = [f" $t{i}$" for i in range(count)]
    figure = draw(result, patterns={heads["previous_token"]: pattern}, tokens=tokens)["patterns"]
    (axes,) = save(figure).axes
    score = result.scores["previous_token"].score[2, 1]
    assert axes.get_title("left") == f"Previous token\n{score:.3g} in L2H1"
    np.testing.assert_array_equal(axes.images[0].get_array(), pattern)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert (names == tokens) == (count == 6)
    assert set(draw(result)) == {"maps", "by_layer"}


def test_patterns_are_those_of_kinds_of_heads_also_where_one_head_is_the_highest_of_several(save):
    kinds = ["previous_token", "duplicate_token", "induction", "sink"]
    sums = dict.fromkeys([*kinds, "self", "detect_duplicate"], np.ones((2, 3, 6)))
    counts = dict.fromkeys(sums, np.full(6, 2.0))
    result = head_scores(sums, counts, dict.fromkeys(sums, np.zeros(6)))
    figure = save(draw(result, patterns={(0, 0): np.eye(4)})["patterns"])
    titles = [axes.get_title("left").partition("\n")[0] for axes in figure.axes]
    assert titles == ["Previous token", "Duplicate token", "Induction", "Sink"]
