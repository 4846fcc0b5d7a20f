from importlib import import_module

import numpy as np
import pytest
from scipy import stats

from palinka.analyses import figures, unit_tuning


def conditions(units):
    a, b = np.random.default_rng(0).normal(size=(2, 8, units))
    b[:, ::5] += 4.0
    return a, b


@pytest.mark.parametrize("units", [1, 50, 5000])
def test_draws_all_figures(units, save):
    a, b = conditions(units)
    result = unit_tuning(a, b)
    every = figures.unit_tuning(result, a=a, b=b, items=[f"${i}" for i in range(16)])
    assert set(every) == {"t", "activations", "mean_activation"}
    for figure in every.values():
        save(figure)
    panels = {axes.get_title("left"): axes for axes in every["mean_activation"].axes}
    low, high = panels["a"].get_ylim()
    assert (low, high) == panels["b"].get_ylim()
    pixels = [np.asarray(axes.images[0].get_array()) for axes in every["activations"].axes[:2]]
    assert [image.shape for image in pixels] == [(8, min(units, 24))] * 2
    assert np.concatenate(pixels).mean(axis=0) == pytest.approx(0.0, abs=1e-12)  # about the mean
    order = [int(label.get_text()) for label in every["activations"].axes[1].get_xticklabels()]
    assert np.all(np.diff(result.t[order]) <= 0)
    assert {result.most_positive, result.most_negative} == {order[0], order[-1]}
    for x in (a, b):
        assert low < x.mean(axis=0).min() <= x.mean(axis=0).max() < high
    assert set(figures.unit_tuning(result)) == {"t"}


def test_significant_units_stand_apart():
    a, b = conditions(50)
    a[:, 26:] = b[:, 26:] = 0.0  # as most latents are
    a[3, 48] = b[5, 49] = 2.0
    result = unit_tuning(a, b)
    axes = figures.unit_tuning(result, conditions=("nouns", "verbs"))["t"].axes[0]
    rest, significant, *_, low, high = axes.lines
    np.testing.assert_array_equal(significant.get_xdata(), np.flatnonzero(result.significant))
    np.testing.assert_array_equal(rest.get_ydata(), result.t[~result.significant])
    title = axes.figure.get_suptitle().replace("\n", " ")
    assert title.startswith(f"{result.significant.sum()} of 50 units tell verbs from nouns")
    assert "(paired t, Bonferroni, alpha 0.05)" in title
    limit = stats.t.isf(0.05 / 2 / 50, 7)
    assert (low.get_ydata()[0], high.get_ydata()[0]) == pytest.approx((-limit, limit))
    assert {text.get_text() for text in axes.texts} <= set(map(str, range(50)))
    assert axes.get_ylabel() == "t (above 0: prefers verbs)"
    kinds = "untestable: 22 constant, 2 active for one item"
    assert axes.get_title("left") == f"|t| above {limit:.3g} (dashed)\n{kinds}"


def test_thresholds_that_differ_by_unit_are_called_so():
    a, b = np.random.default_rng(0).normal(size=(2, 8, 9))
    a[:, :4] *= 3.0
    result = unit_tuning(a, b, test="welch")
    drawn = figures.unit_tuning(result, a=a, b=b, units="latents")
    median = f"(dashed: median {np.median(result.threshold):.3g})"
    title = drawn["t"].axes[0].get_title("left")
    assert title == f"|t| above its latent's threshold {median}"
    assert not result.significant.any()
    assert drawn["mean_activation"].axes[2].get_title("left") == "One against the other"


def test_unaligned_lists_are_labelled_each_by_its_own_words():
    a, b = np.random.default_rng(0).normal(size=(2, 6, 4))
    b = b[:4]
    result = unit_tuning(a, b, test="welch")
    words = [f"w{i}" for i in range(10)]
    first, second = figures.unit_tuning(result, a=a, b=b, items=words)["activations"].axes[:2]
    assert [label.get_text() for label in first.get_yticklabels()] == words[:6]
    assert [label.get_text() for label in second.get_yticklabels()] == words[6:]


def test_overview_compares_sites(save):
    results = {f"hidden.{layer}": unit_tuning(*conditions(20 + layer)) for layer in range(3)}
    figure = import_module("palinka.analyses.figures.unit_tuning").overview(results)["significant"]
    widths = [bar.get_width() for bar in save(figure).axes[0].patches]
    assert widths == pytest.approx([100 * r.significant.mean() for r in results.values()])
