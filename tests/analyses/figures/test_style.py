import numpy as np
import pytest

from palinka import analyses
from palinka.analyses import figures

ITEMS_BY_ITEMS = {"pairwise_mutual_information", "representational_similarity"}


@pytest.mark.parametrize(
    ("items", "units", "shrunk"),
    [
        (9, 20, set()),
        (9, 600, set()),
        (300, 6, ITEMS_BY_ITEMS),
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
        bars = [axes for axes in drawn.axes if axes.get_label() == "<colorbar>"]
        labels = [axes.get_xlabel() + axes.get_ylabel() for axes in bars]
        assert {label.endswith(", mean of neighbors") for label in labels} == {name in shrunk}, name
