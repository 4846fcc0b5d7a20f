import numpy as np
import pytest
from matplotlib.figure import Figure

from palinka import analyses
from palinka.analyses import figures
from palinka.analyses.figures.style import captioned

ITEMS_BY_UNITS = {"generalized_eigendecomposition", "unit_tuning", "latent_statistics"}
ITEMS_BY_ITEMS = {"pairwise_mutual_information", "representational_similarity"}


@pytest.mark.parametrize(
    ("items", "units", "shrunk"),
    [
        (9, 20, set()),
        (9, 600, ITEMS_BY_UNITS),
        (300, 6, {*ITEMS_BY_ITEMS, "generalized_eigendecomposition"}),
    ],
)
def test_color_bars_say_where_neighbors_were_averaged(items, units, shrunk):
    a, b = np.random.default_rng(0).normal(size=(2, items, units))
    both = np.concatenate([a, b])
    for name, data, context, figure in (
        ("generalized_eigendecomposition", (a, b), {"a": a, "b": b}, "data"),
        ("unit_tuning", (a, b), {"a": a, "b": b}, "activations"),
        ("latent_statistics", (a,), {"latents": a}, "latents_by_token"),
        ("pairwise_mutual_information", (both,), {}, "matrices"),
        ("representational_similarity", (both, both), {}, "similarity"),
    ):
        drawn = getattr(figures, name)(getattr(analyses, name)(*data), **context)[figure]
        labels = [axes.get_ylabel() for axes in drawn.axes if axes.get_label() == "<colorbar>"]
        assert {label.endswith(", mean of neighbors") for label in labels} == {name in shrunk}, name


def test_each_figure_gets_its_caption_and_none_is_forgotten() -> None:
    @captioned(a="One.", b="Two.", c="Three.")
    def draw(*names: str) -> dict[str, Figure]:
        return {name: Figure() for name in names}

    assert [figure.get_label() for figure in draw("b", "a").values()] == ["Two.", "One."]
    with pytest.raises(KeyError, match="d"):
        draw("a", "d")
