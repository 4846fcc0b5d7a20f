import numpy as np

from palinka.analyses import figures, logit_lens


def lens(layers=4, tokens=14, far=1.0):
    random = np.random.default_rng(0)
    shape = layers, tokens
    ranks = np.ones(shape, dtype=int)
    ranks[2, 5] = 0
    logs = -random.random(shape)
    logs[3] += 1.0
    given = {"entropy": random.random(shape), "kl_to_final": far * random.random(shape)}
    top = random.integers(0, 9, (*shape, 2)), random.random((*shape, 2))
    return logit_lens(logs, ranks, **given, top_ids=top[0], top_probability=top[1])


def test_the_grid_has_the_predictions_and_the_right_ones_are_bold(save):
    result = lens()
    texts = [[f" {layer}-{token}" for token in range(3)] for layer in range(4)]
    texts[0][0] = "\n"
    shown = [4, 5, 6]
    words = {"tokens": [" a", " $b$", " "], "targets": [" x", " y", " z"]}
    drawn = figures.logit_lens(result, shown=shown, predictions=texts, **words)
    axes, *_ = save(drawn["grid"]).axes
    np.testing.assert_array_equal(axes.images[0].get_array(), result.top_probability[:, shown, 0])
    cells = {(t.get_position()): t for t in axes.texts}
    assert cells[0, 0].get_text() == "␣"
    assert cells[2, 3].get_text() == "3-2"
    bold = [place for place, text in cells.items() if text.get_weight() == "bold"]
    assert bold == [(1, 2)]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "$b$", "␣"]
    assert axes.images[0].origin == "lower"


def test_lines_have_the_means_and_mark_the_blocks_that_change_them(save):
    result = lens()
    drawn = figures.logit_lens(result)
    assert list(drawn) == ["layers"]
    panels = save(drawn["layers"]).axes
    for axes, row in zip(panels, (0, 1, 3, 4), strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), result.means[row])
    assert panels[0].lines[1].get_xdata().tolist() == [3]


def test_ticks_between_powers_of_ten_are_labeled(save):
    assert figures.logit_lens(lens())["layers"].axes[3].get_yscale() == "linear"
    axes = save(figures.logit_lens(lens(far=20.0))["layers"]).axes[3]
    assert axes.get_yscale() == "symlog"
    assert axes.yaxis.get_minor_formatter()(2.0, 0) == "2"
