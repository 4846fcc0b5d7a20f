import inspect
import io
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG

from palinka import analyses
from palinka.analyses import figures

ITEMS, UNITS = 12, 9


def finding(name, **options):
    """Run an analysis on random data, and return what the runner tells its figures, too."""
    random = np.random.default_rng(0)
    latents = np.maximum(random.normal(size=(ITEMS, UNITS)), 0.0)
    latents[:, 2] = 0.0  # a dead latent
    given = {
        "a": random.normal(size=(ITEMS // 2, UNITS)),
        "b": random.normal(size=(ITEMS // 2, UNITS)) + 0.5,
        "x": random.normal(size=(ITEMS, UNITS)),
        "y": random.normal(size=(ITEMS, UNITS + 1)),
        "groups": [f"group {item % 2}" for item in range(ITEMS)],
        "latents": latents,
        "targets": np.arange(ITEMS) % 3 == 0,
        "patched": random.normal(size=(3, 4, ITEMS)),
        "estimated": random.normal(size=(3, 4, ITEMS)),
        "sums": {n: random.random((3, 2, ITEMS)) for n in ("previous_token", "entropy")},
        "counts": dict.fromkeys(("previous_token", "entropy"), np.ones(ITEMS)),
        "reference": {n: random.random(ITEMS) for n in ("previous_token", "entropy")},
        "clean": 2.0 + random.random(ITEMS),
        "corrupted": -2.0 - random.random(ITEMS),
        "clusters": np.arange(ITEMS) // 2,
        "lesioned": random.normal(size=(2, 1, 10, ITEMS)),
        "units": np.arange(6).reshape(2, 3),
        "removed": random.normal(size=(2, 3, ITEMS)),
        "variance_removed": random.random((2, 3)),
        "control_variance": {"matched": random.random((2, 3, 5))},
        "ranks": [1, 2, 4],
        "sites": ["hidden.1", "hidden.2"],
        "steered": random.normal(size=(2, 3, ITEMS)),
        "alphas": [-0.1, 0.0, 0.1],
        "controls": {"isotropic": random.normal(size=(5, 3, ITEMS))},
        "kl": random.random((2, 3)),
        "control_kl": {"isotropic": random.random((4, 3))},
        "directions": ["a", "b"],
        "direct": random.normal(size=(3, 4, ITEMS)),
        "target_log_probability": -random.random((3, ITEMS)),
        "target_rank": random.integers(0, 2, (3, ITEMS)),
        "entropy": random.random((3, ITEMS)),
        "kl_to_final": random.random((3, ITEMS)),
        "top_ids": random.integers(0, 9, (3, ITEMS, 2)),
        "top_probability": random.random((3, ITEMS, 2)),
        "logit_difference": 1.0 + random.random(ITEMS),
        "contributions": {
            "heads": random.normal(size=(2, 3, ITEMS)),
            "mlp.out": random.normal(size=(2, ITEMS)),
            "resid": random.normal(size=(3, ITEMS)),
        },
        **options,
    }
    if name == "subspace_removal":
        given["controls"] = {"matched": random.normal(size=(2, 3, 5, ITEMS))}
        given["kl"] = random.random((2, 3, ITEMS))
    analysis = getattr(analyses, name)
    parameters = inspect.signature(analysis).parameters
    data = {key: value for key, value in given.items() if key in parameters}
    context = {"items": [f"word {item}" for item in range(ITEMS)], "units": "latents"}
    context["lost"] = {"hidden.3, rank 4": random.normal(size=ITEMS)}
    context |= {"conditions": ("first", "second"), "tokens": [f" t{item}" for item in range(ITEMS)]}
    return analysis(**data), {**context, **{key: data[key] for key in "abxy" if key in data}}


@pytest.fixture(scope="module", params=analyses.__all__)
def name(request):
    return request.param


def state():
    """What figures could leave behind."""
    generator = np.random.get_state()[1].tolist()  # noqa: NPY002
    return dict(mpl.rcParams), plt.get_fignums(), generator


@pytest.fixture(scope="module")
def whole(name):
    """Figures with permutations and context, their result, and what it and the state were."""
    before = state()
    result, context = finding(name, permutations=9)
    arrays = {key: array.copy() for key, array in result.arrays().items()}
    drawn = getattr(figures, name)(result, **context)
    return drawn, result, arrays, before, state()


@pytest.fixture(scope="module", params=["bare", "with permutations and context"])
def drawn(name, request):
    if request.param == "bare":
        return getattr(figures, name)(finding(name)[0])
    return request.getfixturevalue("whole")[0]


def texts_of(axes):
    labels = (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(), axes.get_title("left"))
    return [text for text in (*labels, axes.get_title("right")) if text.strip()]


def test_every_figure_has_a_name_a_caption_and_labeled_panels_and_can_be_saved(drawn):
    assert drawn
    for key, figure in drawn.items():
        assert isinstance(figure, mpl.figure.Figure)
        assert key.isidentifier()  # it becomes a file name
        assert figure.get_label().endswith("."), key
        assert 20 <= len(figure.get_label()) <= 300, key
        assert figure.axes
        for axes in figure.axes:
            assert not axes.axison or texts_of(axes), f"a panel of {key} has no label and no title"
        png, svg = io.BytesIO(), io.BytesIO()
        figure.dpi = 50
        FigureCanvasAgg(figure).print_png(png)  # once, where `savefig` would draw it twice
        figure.set_layout_engine("none")  # all is in its place by now
        FigureCanvasSVG(figure).print_svg(svg)
        assert png.getvalue().startswith(b"\x89PNG"), key
        assert ElementTree.fromstring(svg.getvalue()).tag.endswith("svg"), key
        assert max(figure.get_size_inches()) <= 40, key  # small enough for a page
    assert len({figure.get_label() for figure in drawn.values()}) == len(drawn)


def test_leaves_nothing_behind(whole):
    _, result, arrays, before, after = whole
    assert after == before
    for key, array in result.arrays().items():
        np.testing.assert_array_equal(array, arrays[key])


def test_an_overview_draws_several_results(name, whole, save):
    module = inspect.getmodule(getattr(figures, name))
    if not hasattr(module, "overview"):
        pytest.skip("draws every result on its own")
    _, result, *_ = whole
    sites = {f"hidden.{layer}": result for layer in range(3)}
    overview = module.overview(sites, conditions=("first", "second"))
    assert overview
    for figure in overview.values():
        save(figure)
        assert all(texts_of(axes) for axes in figure.axes if axes.axison)
