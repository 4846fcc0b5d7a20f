import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.analyses import ablation, activation_patching
from palinka.analyses.stats.effects import cluster_means, sign_flip_test

TEMPLATES = np.repeat([f"template {i}" for i in range(7)], [3, 1, 2, 2, 4, 1, 1])
N = len(TEMPLATES)
AXES = {
    "heads": {"value": ["zero", "mean"], "layer": [0, 1], "head": [0, 1, 2]},
    "mlp.out": {"value": ["zero", "mean"], "layer": [0, 1]},
}


def outcomes(seed=0):
    """Outcomes of ablated heads and MLPs, of the clean, and of the corrupted prompts."""
    random = np.random.default_rng(seed)
    clean, corrupted = 2.0 + random.random(N), -1.0 - random.random(N)
    shapes = {name: [len(labels) for labels in axes.values()] for name, axes in AXES.items()}
    cells = {name: clean - random.random((*shape, N)) for name, shape in shapes.items()}
    direct = {name: random.normal(size=(*shape, N)) for name, shape in shapes.items()}
    return cells, clean, corrupted, direct


def test_effects_are_those_of_noising():
    patched, clean, corrupted, _ = outcomes()
    found = ablation(patched, clean, corrupted, clusters=TEMPLATES, axes=AXES)
    expected = activation_patching(patched, clean, corrupted, clusters=TEMPLATES, direction="noise")
    for name in ("effects", "effect_low", "recovery", "recovery_high", "p", "p_corrected"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_differences_are_those_of_pairs(seed):
    patched, clean, corrupted, _ = outcomes(seed)
    found = ablation(
        patched, clean, corrupted, clusters=TEMPLATES, axes=AXES, permutations=200
    ).arrays()
    cells = np.concatenate([patched["heads"].reshape(2, 6, N), patched["mlp.out"]], axis=1)
    paired = cluster_means(cells[0] - cells[1], TEMPLATES)
    p, corrected = sign_flip_test(paired, 200, 0)
    expected = dict(
        zip(("", "_p", "_p_corrected"), (paired.mean(axis=1), p, corrected), strict=True)
    )
    for name, values in expected.items():
        heads, mlps = found[f"heads/difference{name}"], found[f"mlp.out/difference{name}"]
        np.testing.assert_allclose(np.append(heads[1].ravel(), mlps[1]), values, atol=1e-12)
    assert all(np.isnan(found[f"heads/difference{name}"][0]).all() for name in expected)


def test_one_value_has_no_difference():
    patched, clean, corrupted, _ = outcomes()
    result = ablation(patched["heads"][:1], clean, corrupted)
    assert result.difference is None
    assert "difference" not in result.arrays()
    unpermuted = ablation(patched["heads"], clean, corrupted, permutations=0)
    assert unpermuted.difference.any()
    assert np.isnan(unpermuted.difference_p).all()


def test_an_indirect_effect_is_the_effect_without_the_direct_one():
    patched, clean, corrupted, direct = outcomes()
    given = {"axes": AXES, "direct": direct}
    arrays = (result := ablation(patched, clean, corrupted, clusters=TEMPLATES, **given)).arrays()
    for name, own in direct.items():
        np.testing.assert_array_equal(arrays[f"{name}/direct_effect"], own)
        np.testing.assert_allclose(arrays[f"{name}/indirect_effect"], patched[name] - clean - own)
    table = result.tables()["cells"]
    by_hand = cluster_means(direct["mlp.out"][1, 0], TEMPLATES).mean()
    at = 12 + 2
    named = [table[axis][at] for axis in ("component", "value", "layer", "head")]
    assert named == ["mlp.out", "mean", 0, ""]
    assert table["direct_effect"][at] == pytest.approx(by_hand)
    repaired = table["effect"] - table["direct_effect"]
    np.testing.assert_allclose(table["indirect_effect"], repaired, atol=1e-12)
    clean[2] = -0.5
    solved = ablation(
        patched, clean, corrupted, clusters=TEMPLATES, only="solved", **given
    ).arrays()
    kept = np.delete(direct["heads"], 2, axis=-1)
    np.testing.assert_array_equal(solved["heads/direct_effect"], kept)
    rest = np.delete(patched["heads"] - clean - direct["heads"], 2, axis=-1)
    np.testing.assert_allclose(solved["heads/indirect_effect"], rest)


def test_plain_text_has_no_gap():
    random = np.random.default_rng(0)
    divergence = random.random((2, 3, 4, 12))
    result = ablation(divergence, np.zeros(12), outcome="kl")
    np.testing.assert_array_equal(result.arrays()["effects"], divergence)
    assert np.isnan(result.p).all()
    assert np.isfinite(result.maps(result.difference_p)[""][1]).all()
    assert np.isnan(result.recovery).all()
    assert np.isnan(result.gap)
    assert result.notes == ("a divergence from the clean run is never negative: no test of 0",)
    assert not {"gap", "prompts_solved", "0/strongest_recovery"} & set(result.scalars())


def test_scalars_name_the_strongest_cell_of_each_value():
    patched, clean, corrupted, _ = outcomes()
    patched["heads"][0, 1, 2] -= 5.0
    patched["heads"][1, 0, 1] += 9.0
    scalars = ablation(patched, clean, corrupted, clusters=TEMPLATES, axes=AXES).scalars()
    found = [
        scalars[f"heads/{v}/strongest_{a}"] for v in ("zero", "mean") for a in ("layer", "head")
    ]
    assert found == [1, 2, 0, 1]
    assert scalars["heads/mean/strongest_effect"] > 0 > scalars["heads/zero/strongest_effect"]


def test_the_headline_says_what_is_left_of_the_gap():
    result = ablation(np.full((1, 2, N), 0.5), np.ones(N), -np.ones(N), clusters=TEMPLATES)
    line = result.headline("", ())
    assert "value 0 layer 0 -0.5, 75% of the gap left, p 0.0156" in line
    assert "sign flips of 7 templates" in line
    alone = ablation(np.full((1, 2, N), 0.5), np.ones(N), -np.ones(N))
    assert f"sign flips of {N} prompts" in alone.headline("", ())


def test_tokens_that_became_the_prediction_are_counted():
    patched, clean, corrupted, _ = outcomes()
    clean_top = np.array([" he"] * (N - 1) + [" it"], dtype="U4")
    top = {name: np.tile(clean_top, (*x.shape[:-1], 1)) for name, x in patched.items()}
    top["mlp.out"][1, 0, :5] = [" she", " it", " she", "", " she"]
    data = {"axes": AXES, "top": top, "clean_top": clean_top}
    table = ablation(patched, clean, corrupted, **data).tables()["new_top"]
    cell = {"component": "mlp.out", "value": "mean", "layer": 0}
    expected = [cell | {"token": " she", "count": 3}, cell | {"token": " it", "count": 1}]
    assert table == {name: [row[name] for row in expected] for name in expected[0]}
    clean[0] = -0.1
    solved = ablation(patched, clean, corrupted, only="solved", **data).tables()["new_top"]
    assert solved["count"] == [2, 1]
    assert "new_top" not in ablation(patched, clean, corrupted, axes=AXES).tables()
