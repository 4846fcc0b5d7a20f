import numpy as np
import pytest
from matplotlib.patches import Rectangle

from palinka import analyses
from palinka.analyses import figures
from palinka.analyses.figures.pairwise_mutual_information import overview

CONDITIONS = ("comma", "full $stop")


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    activations = {}
    for layer in range(4):
        for condition in CONDITIONS:
            shared = random.normal(size=60)
            # Layer 0 holds a token's embedding: the same for all items.
            own = random.normal(size=(8, 60)) * (layer > 0)
            activations[f"hidden.{layer}/{condition}"] = 10.0**layer * (shared + own)
    return activations


@pytest.fixture(scope="module")
def results(data):
    return {key: analyses.pairwise_mutual_information(x) for key, x in data.items()}


@pytest.fixture(scope="module")
def drawn(data, results):
    means = {key: x.mean(axis=0) for key, x in data.items()}
    return overview(results, means=means, conditions=CONDITIONS[::-1], units="latents")


def test_matrices_show_every_pair_in_both_halves_and_white_is_zero():
    result = analyses.pairwise_mutual_information(np.random.default_rng(1).normal(size=(9, 50)))
    figure = figures.pairwise_mutual_information(result)["matrices"]
    for axes, matrix in zip(
        figure.axes, (result.mutual_information, result.covariance), strict=False
    ):
        shown = np.asarray(axes.images[0].get_array())
        off_diagonal = ~np.eye(len(matrix), dtype=bool)
        np.testing.assert_array_equal(shown[off_diagonal], (matrix + matrix.T)[off_diagonal])
    low, high = figure.axes[1].images[0].get_clim()
    assert low == -high
    assert figure.axes[1].images[0].get_cmap().name == "RdBu_r"


def test_conditions_share_a_figure_and_its_scales(results, drawn):
    figure = drawn["hidden.2/matrices"]
    assert figure.get_suptitle() == "Dependence of pairs of items at hidden.2"
    for column, name in enumerate(("mutual_information", "covariance")):
        first, second, histogram = figure.axes[column:6:2]
        assert first.images[0].get_clim() == second.images[0].get_clim()
        for axes, condition in zip((first, second), CONDITIONS[::-1], strict=True):
            matrix = getattr(results[f"hidden.2/{condition}"], name)
            assert (
                axes.images[0].get_array()[2, 5] == axes.images[0].get_array()[5, 2] == matrix[2, 5]
            )
        assert len(histogram.lines) == 2  # markers at the means
    assert [axes.get_title(loc="left")[2:] for axes in figure.axes[:4:2]] == [
        f"{condition} (8 items)" for condition in CONDITIONS[::-1]
    ]


def test_an_item_unlike_all_others_is_numbered_and_quoted():
    random = np.random.default_rng(0)
    x = random.normal(size=500) + 0.3 * random.normal(size=(9, 500))
    x[6] = random.normal(size=500)
    result = analyses.pairwise_mutual_information(x)
    items = [f"word {i}, and then [,] on" for i in range(9)]
    figure = figures.pairwise_mutual_information(result, items=items)["matrices"]
    assert figure.axes[0].get_yticks().tolist() == [7]
    assert figure.get_supxlabel().endswith("7: word 6, and then [,] on")


def test_the_overview_has_a_panel_for_each_site(drawn, results, save):
    panels = drawn["comparison_by_site"].axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert [title.split("\n")[0] for title in titles] == [f"hidden.{i}" for i in range(4)]
    # Two points have no r, and zero is not forced into view.
    assert titles[0].endswith("r: all pairs equal")
    assert panels[2].get_ylim()[0] > 0
    # The order of conditions is the caller's, and both of them together come last.
    r = [results[f"hidden.2/{name}"].correlation for name in CONDITIONS[::-1]]
    assert f"● {r[0]:.2f}  ▲ {r[1]:.2f}  all " in titles[2]
    legend = drawn["comparison_by_site"].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == list(CONDITIONS[::-1])
    constant = results["hidden.0/comma"]
    assert np.isnan(constant.correlation)
    for figure in figures.pairwise_mutual_information(constant).values():
        save(figure)
    save(drawn["comparison_by_site"])
    alone = overview({f"blocks.{i}.attn.q": results[f"hidden.{i}/comma"] for i in (1, 3)})
    assert sorted(alone) == ["comparison_by_site", "distributions", "means_by_site"]
    assert alone["means_by_site"].axes[1].get_xlabel() == "layer (blocks.i.attn.q)"


def test_a_site_may_lack_a_condition_and_results_may_have_none(results, data):
    comma, stop = CONDITIONS
    means = {key: values.mean(axis=0) for key, values in data.items()}
    some = {
        key: results[key] for key in (f"hidden.1/{comma}", f"hidden.2/{comma}", f"hidden.2/{stop}")
    }
    found = overview(some, means={f"hidden.2/{comma}": means[f"hidden.2/{comma}"]})
    assert "mean_activation" not in found
    left = found["distributions"].axes[:6:2]
    assert [axes.get_title(loc="left") for axes in left] == [comma, stop, "together"]
    assert [[text.get_text() for text in axes.texts] for axes in left] == [["1", "2"], ["2"], ["2"]]
    lines = {line.get_label(): line for line in found["means_by_site"].axes[1].lines}
    assert list(lines[stop].get_xdata()) == [2]
    alone = {f"hidden.{i}": f"hidden.{i}/{comma}" for i in (1, 2)}
    of_sites = {site: results[key] for site, key in alone.items()}
    assert overview(of_sites, means={site: means[key] for site, key in alone.items()})


def test_distributions_and_means_come_by_condition_and_together(drawn, results):
    left = drawn["distributions"].axes[:6:2]
    assert [axes.get_title(loc="left") for axes in left] == [*CONDITIONS[::-1], "together"]
    # Layer 0 has one value, not a distribution.
    assert all(len(axes.lines) == 3 for axes in left)
    assert all([text.get_text() for text in axes.texts] == ["1", "2", "3"] for axes in left)
    assert "all equal: 0" in left[2].get_xlabel()
    # The colors are those of the layers that are drawn.
    assert drawn["distributions"].axes[-1].get_xlim() == (1.0, 3.0)
    information = drawn["means_by_site"].axes[0]
    labels = [*CONDITIONS[::-1], *(f"{name}, units shuffled" for name in CONDITIONS)]
    assert {line.get_label() for line in information.lines} == {*labels, "together"}
    assert list(information.lines[0].get_xdata()) == [0, 1, 2, 3]
    (shuffled,) = (line for line in information.lines if line.get_label() == labels[2])
    nulls = [results[f"hidden.{i}/comma"].null for i in range(4)]
    np.testing.assert_allclose(shuffled.get_ydata(), np.mean(nulls, axis=1))
    patches = drawn["hidden.2/matrices"].axes[4].patches
    bands = [each for each in patches if isinstance(each, Rectangle)]
    for band, condition in zip(bands, CONDITIONS[::-1], strict=True):
        ends = np.percentile(results[f"hidden.2/{condition}"].null, [2.5, 97.5])
        np.testing.assert_allclose([band.get_x(), band.get_x() + band.get_width()], ends)
    line = drawn["means_by_site"].axes[1].lines[1]
    assert line.get_label() == "comma"
    expected = [results[f"hidden.{i}/comma"].scalars()["mean_covariance"] for i in range(4)]
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_mean_activations_are_those_of_the_site_in_the_middle(drawn, data):
    axes = drawn["mean_activation"].axes
    assert [panel.get_title(loc="left") for panel in axes[:2]] == list(CONDITIONS[::-1])
    np.testing.assert_array_equal(axes[1].lines[0].get_ydata(), data["hidden.2/comma"].mean(axis=0))
