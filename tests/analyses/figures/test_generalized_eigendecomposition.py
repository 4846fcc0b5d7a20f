import importlib

import numpy as np
import pytest

from palinka.analyses import figures, generalized_eigendecomposition
from palinka.analyses.stats.permutation import critical_value

module = importlib.import_module("palinka.analyses.figures.generalized_eigendecomposition")
ALWAYS = {"spectrum", "variance", "patterns", "scores"}


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    return random.normal(size=(7, 30)) + 1.0, random.normal(size=(9, 30))


@pytest.fixture(scope="module")
def result(data):
    return generalized_eigendecomposition(*data, permutations=19)


def test_draws_what_the_context_allows(result, data):
    a, b = data
    plain = generalized_eigendecomposition(a, b)
    drawn = figures.generalized_eigendecomposition(plain)
    assert set(drawn) == ALWAYS
    found = plain.eigenvalues_a[0]
    for name in ("spectrum", "scores"):  # nothing is tested
        title = drawn[name].axes[0].get_title("left")
        assert title.endswith((f"largest: {found:.4g}", f"ratio {found:.4g}"))
    assert set(figures.generalized_eigendecomposition(result)) == ALWAYS | {"null"}
    texts = [(["x", "y"], acts) for acts in np.random.default_rng(1).normal(size=(16, 2, 30))]
    drawn = figures.generalized_eigendecomposition(result, a=a, b=b, texts=texts, other=1)
    assert set(drawn) == ALWAYS | {"null", "data", "covariances", "shuffled", "series"}


def test_scores_are_drawn_about_their_means_and_the_strongest_are_named(result, data):
    items = [f"item ${number}" for number in range(15)] + ["a very long sentence " * 5]
    drawn = figures.generalized_eigendecomposition(
        result, a=data[0], b=data[1], items=items, conditions=("him", "her")
    )
    axes = drawn["scores"].axes[0]
    him, her = (line for line in axes.lines if not line.get_label().startswith("_"))
    scores = result.scores_a
    np.testing.assert_allclose(him.get_ydata(), scores[:7] - scores[:7].mean())
    np.testing.assert_allclose(her.get_ydata(), scores[7:] - scores[7:].mean())
    assert (him.get_label(), her.get_label()) == ("him", "her")
    assert him.get_marker() != her.get_marker()
    strongest = str(np.abs(him.get_ydata()).argmax())  # A over B: of the first condition
    assert strongest in {text.get_text() for text in axes.texts}
    assert f"\n{strongest}: item ${strongest}\n" in axes.get_xlabel()
    ratio, low, high = result.heldout_ratio_a
    heldout = f"held out {ratio:.3g} (range over 50 splits: {low:.3g} to {high:.3g})"
    found = f"in-sample ratio {result.observed_a:.4g}"  # the one of the null
    assert axes.get_title("left") == f"him over her: {found}\n{heldout}"


def test_spectrum_and_null_show_what_was_found(result):
    drawn = figures.generalized_eigendecomposition(result)
    for axes, name in zip(drawn["spectrum"].axes, "ab", strict=True):
        eigenvalues, null = getattr(result, f"eigenvalues_{name}"), getattr(result, f"null_{name}")
        np.testing.assert_allclose(axes.lines[0].get_ydata(), eigenvalues / eigenvalues[0])
        (band,) = axes.patches
        ends = np.quantile(null, [0.025, 0.975]) / getattr(result, f"observed_{name}")
        np.testing.assert_allclose([band.get_y(), band.get_y() + band.get_height()], ends)
        assert f"as tested: {getattr(result, f'observed_{name}'):.4g}" in axes.get_title("left")
    axes = drawn["null"].axes[1]
    (legend,) = drawn["null"].legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert sorted(labels) == ["labels exchanged", "observed", "p = 0.05"]
    assert not axes.texts
    lines = [line.get_xdata()[0] for line in axes.lines]
    assert lines == [result.observed_b, critical_value(result.null_b)]
    assert sum(bar.get_height() for bar in axes.patches) == 19
    assert f"{result.observed_b:.4g}, p = {result.p_value_b:.3g}" in axes.get_title("left")


def test_covariances_of_many_columns_are_exact_block_means(monkeypatch, data):
    monkeypatch.setattr(module, "MAX_BLOCKS", 10)
    blocks = np.cov(module._blocks(data[0]), rowvar=False)
    expected = np.cov(data[0], rowvar=False).reshape(10, 3, 10, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(blocks, expected)


def test_a_shuffled_labeling_stands_beside_the_true_one(result, data):
    a, b = data
    one, other = (
        figures.generalized_eigendecomposition(result, a=a, b=b, seed=seed)["shuffled"].axes
        for seed in (1, 2)
    )
    np.testing.assert_array_equal(one[0].lines[0].get_ydata(), result.eigenvalues_a)
    largest = [axes.lines[0].get_ydata()[0] for axes in (one[0], one[1], other[1])]
    assert len(set(largest)) == 3
    *shuffled, order = module.permuted_labels(a, b, False, seed=1)
    expected = generalized_eigendecomposition(*shuffled).scores_a
    first, second = (line for line in one[3].lines if line.get_marker() in "o^")
    for line, items in ((first, slice(7)), (second, slice(7, None))):
        found = dict(zip(*line.get_data(), strict=True))
        centered = expected[items] - expected[items].mean()
        assert found == pytest.approx(dict(zip(order[items], centered, strict=True)))


@pytest.mark.parametrize("pairs", [False, True])
def test_a_permuted_labeling_has_the_same_centered_items(pairs):
    a, b = np.random.default_rng(0).normal(size=(2, 9, 11))
    labeled_a, labeled_b, order = module.permuted_labels(a, b, pairs, seed=1)
    centered = np.concatenate([a - a.mean(axis=0), b - b.mean(axis=0)])
    np.testing.assert_array_equal(np.concatenate([labeled_a, labeled_b]), centered[order])
    assert sorted(order) == list(range(18))
    assert 0 < (order[:9] >= 9).sum() < 9
    assert (order % 9 == np.tile(np.arange(9), 2)).all() == pairs


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (["I", "saw", "him", "there"], ["I", "saw", "her", "there"], (2, 1)),
        (["him", "too"], ["h", "er", "too"], (0, 1)),
        (["a", "a", "him", "a"], ["a", "a", "a"], (2, 1)),
        (["one", "two", "three", "four", "five"], ["one", "other", "words", "stand", "here"], None),
        (["him"], ["her"], None),
    ],
)
def test_versions_of_a_frame_share_all_but_the_target(first, second, expected):
    assert module.corresponding(first, second) == expected


def test_corresponding_tokens_are_joined():
    him = (["I", " saw", " him", "."], np.array([1.0, 2, 3, 4]), np.zeros(4))
    her = (["I", " saw", " h", "er", "."], np.array([1.0, 2, 5, 6, 7]), np.zeros(5))
    figure = module.draw_series([him, her], 1, ("him", "her"))
    axes = figure.axes[0]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert ([4.0, 4.0], [4.0, 7.0]) in lines  # the full stops, at one place
    assert ([2.0, 2.0], [3.0, 5.0]) in lines  # the targets
    assert ([0, 1, 2, 4], [1.0, 2, 3, 4]) in lines
    lower = figure.axes[1]
    assert [label.get_text() for label in lower.get_xticklabels()] == her[0]


def test_texts_that_are_no_versions_of_each_other_stand_alone():
    scores = np.array([1e4, 1.0, -1.0])
    series = [([f"{text} {token}" for token in range(3)], scores, scores) for text in range(10)]
    figure = module.draw_series(series, 5, ("a", "b"))
    assert len(figure.axes) == 2 * 4  # two of each condition, in both directions
    (_, only) = module.draw_series(series, 5, ("a", "b"), wanted=[7]).axes
    assert [label.get_text() for label in only.get_xticklabels()] == series[7][0]
    assert figure.axes[0].get_ylim()[1] < 2.0  # a huge first token does not set the scale


def test_the_overview_has_a_row_for_every_site(result, data):
    plain = generalized_eigendecomposition(*data)
    for each, panels in ((plain, 1), (result, 2)):
        drawn = module.overview({"hidden.0": each, "hidden.1": each}, conditions=("him", "her"))
        assert len(drawn["sites"].axes) == panels
        labels = [label.get_text() for label in drawn["sites"].axes[0].get_yticklabels()]
        assert labels == ["hidden.0", "hidden.1"]
