import numpy as np

from palinka.analyses import direct_logit_attribution, figures

TOTAL = np.full(8, 2.0)


def parts():
    random = np.random.default_rng(0)
    found = {"attn.out": (3,), "mlp.out": (3,), "heads": (3, 2), "resid": (4,)}
    made = {name: random.normal(size=(*shape, 8)) for name, shape in found.items()}
    made["mlp.out"][1] += 9.0
    made["resid"][3] += 9.0
    return made


def test_bars_maps_and_lines_have_the_contributions(save):
    found = parts()
    result = direct_logit_attribution(found, TOTAL)
    drawn = figures.direct_logit_attribution(result, target="plum")
    assert list(drawn) == ["layers", "heads", "cumulative"]
    assert all("plum" in figure.get_suptitle() for figure in drawn.values())
    (axes,) = save(drawn["layers"]).axes
    heights = [bar.get_height() for bar in axes.patches]
    expected = np.concatenate([found["attn.out"], found["mlp.out"]]).mean(1)
    np.testing.assert_allclose(heights, expected)
    filled = [bar.get_facecolor()[3] > 0 for bar in axes.patches]
    assert filled == [False] * 4 + [True, False]
    np.testing.assert_allclose(drawn["heads"].axes[0].images[0].get_array(), found["heads"].mean(2))
    line, *_ = save(drawn["cumulative"]).axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), found["resid"].mean(1))
    assert line.get_markevery() == [3]


def test_units_are_drawn_by_the_size_of_their_contributions(save):
    values = np.arange(-3.0, 27.0)[:, None] + np.zeros(8)
    axes = {"units": {"unit": list(range(30))}}
    result = direct_logit_attribution({"units": values}, TOTAL, axes=axes)
    drawn = figures.direct_logit_attribution(result)
    assert list(drawn) == ["largest"]
    (panel,) = save(drawn["largest"]).axes
    assert [bar.get_width() for bar in panel.patches] == list(range(7, 27))
    assert panel.get_yticklabels()[-1].get_text() == "unit 29"
