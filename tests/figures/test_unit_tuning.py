import io
from importlib import import_module

import numpy as np
import pytest

from palinka import figures
from palinka.analyses import unit_tuning
from palinka.figures.heatmap import NEGATIVE, POSITIVE


def conditions(units, items=8):
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, items, units))
    b[:, ::5] += 4.0
    return a, b


def drawn(figure):
    figure.savefig(io.BytesIO(), dpi=40)
    return figure


@pytest.mark.parametrize("units", [1, 5000])
def test_draws_all_figures(units):
    a, b = conditions(units)
    result = unit_tuning(a, b)
    every = figures.unit_tuning(
        result, a=a, b=b, conditions=("nouns", "verbs"), items=[f"${i}" for i in range(16)],
        tokens=["x", "y"], passage=np.ones((2, units)), groups=("ignored",),
    )  # fmt: skip
    assert set(every) == {"t", "activations", "mean_activation", "heatmaps"}
    for figure in every.values():
        drawn(figure)
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


def test_the_two_most_tuned_units_are_drawn_on_a_text():
    result = unit_tuning(*conditions(20))
    passage = np.random.default_rng(1).normal(size=(3, 20))
    module = import_module("palinka.figures.unit_tuning")
    context = {"tokens": ["a", "b", "c"], "passage": passage, "conditions": ("nouns", "verbs")}
    positive, negative = module.tuned_heatmaps(result, **context)
    np.testing.assert_array_equal(positive.values, passage[:, result.most_positive])
    np.testing.assert_array_equal(negative.values, passage[:, result.most_negative])
    assert (positive.colors, negative.colors) == (POSITIVE, NEGATIVE)
    assert positive.exponent == 1.0
    assert module.tuned_heatmaps(result, units="latents", **context)[0].exponent == 2.0
    assert f"unit {result.most_negative}: prefers nouns" in negative.caption
    html = module.pages(result, **context)["heatmaps"]
    assert f"{passage[1, result.most_positive]:.6g} · token 1" in html
    assert module.pages(result) == {}


def test_overview_compares_sites():
    results = {f"hidden.{layer}": unit_tuning(*conditions(20 + layer)) for layer in range(3)}
    figure = import_module("palinka.figures.unit_tuning").overview(results)["significant"]
    widths = [bar.get_width() for bar in drawn(figure).axes[0].patches]
    assert widths == pytest.approx([100 * r.significant.mean() for r in results.values()])
