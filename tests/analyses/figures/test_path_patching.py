import numpy as np

from palinka.analyses import figures, path_patching

RECEIVERS = ["logits", "4.v.2"]
AXES = {
    "heads": {"receiver": RECEIVERS, "layer": range(3), "head": range(4)},
    "mlp.out": {"layer": range(3), "receiver": RECEIVERS},
}


def test_heads_have_a_panel_for_each_receiver(save):
    random = np.random.default_rng(0)
    clean, corrupted = 2.0 + random.random(10), -1.0 - random.random(10)
    shapes = {name: [len(x) for x in axes.values()] for name, axes in AXES.items()}
    patched = {name: corrupted + random.normal(size=(*s, 10)) for name, s in shapes.items()}
    result = path_patching(patched, clean, corrupted, axes=AXES)
    figure = save(figures.path_patching(result, through="mlps")["map"])
    heads, others = result.maps(result.effect).values()
    for axes, expected in zip(figure.axes, (*heads, others), strict=False):
        np.testing.assert_allclose(axes.images[0].get_array(), expected)
    titles = [axes.get_title("left") for axes in figure.axes[:3]]
    assert titles == ["heads, logits", "heads, 4.v.2", "MLP output"]
    assert "directly or through MLPs" in figure.get_suptitle().replace("\n", " ")
