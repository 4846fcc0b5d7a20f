from importlib import import_module

import numpy as np
import pytest

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
    for x in (a, b):
        assert low < x.mean(axis=0).min() <= x.mean(axis=0).max() < high
    assert set(figures.unit_tuning(result)) == {"t"}


def test_significant_units_stand_apart():
    result = unit_tuning(*conditions(50))
    axes = figures.unit_tuning(result, conditions=("nouns", "verbs"))["t"].axes[0]
    rest, significant = axes.lines[:2]
    np.testing.assert_array_equal(significant.get_xdata(), np.flatnonzero(result.significant))
    np.testing.assert_array_equal(rest.get_ydata(), result.t[~result.significant])
    assert axes.get_title(loc="left") == f"{result.significant.sum()} of 50 units significant"
    assert axes.get_ylabel() == "t (above 0: prefers verbs)"


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
