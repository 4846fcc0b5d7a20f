import numpy as np
import pytest

from palinka.analyses import figures
from palinka.errors import InputError


def test_every_family_has_a_curve_from_few_latents_to_many(save):
    families = {"TopK": ([32, 8, 128], [0.2, 0.4, 0.1]), "ReLU": ([20.5], [0.3])}
    (axes,) = save(figures.sparsity_frontier(families, title="mini")["l0_fvu"]).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["TopK", "ReLU"]
    first, second = axes.lines
    np.testing.assert_array_equal(first.get_xydata(), [[8, 0.4], [32, 0.2], [128, 0.1]])
    np.testing.assert_array_equal(second.get_xydata(), [[20.5, 0.3]])
    assert axes.get_ylim()[0] == 0
    assert axes.get_title(loc="left") == "mini"


def test_more_families_than_colors_are_told_apart():
    families = {f"family {i}": ([i + 1.0], [0.5]) for i in range(9)}
    axes = figures.sparsity_frontier(families)["l0_fvu"].axes[0]
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 9


def test_no_dictionaries_are_rejected():
    with pytest.raises(InputError, match="no dictionaries"):
        figures.sparsity_frontier({})
