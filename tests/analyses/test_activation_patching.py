import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.analyses.activation_patching import activation_patching
from palinka.errors import InputError

TEMPLATES = np.repeat([f"template {i}" for i in range(8)], [3, 1, 2, 2, 4, 1, 1, 2])
N = len(TEMPLATES)
AXES = {
    "resid": {"layer": [0, 1], "position": ["s1", "s2", "end"]},
    "heads": {"layer": [0, 1], "head": [0, 1]},
}


def outcomes(seed=0, n=N):
    """Patched outcomes of two components, of the clean, and of the corrupted prompts."""
    random = np.random.default_rng(seed)
    clean, corrupted = 2.0 + random.random(n), -1.0 - random.random(n)
    resid = corrupted + np.array([0.0, 0.3, 0.9])[:, None] * (clean - corrupted)
    resid = resid + 0.2 * random.normal(size=(2, 3, n))
    heads = corrupted + 0.5 * random.normal(size=(2, 2, n)) - 0.3
    return {"resid": resid, "heads": heads}, clean, corrupted


def by_loops(patched, clean, corrupted, template, direction):
    """Effect and recovery of one cell, as they are defined."""
    base = corrupted if direction == "denoise" else clean
    means = []
    for name in dict.fromkeys(template):
        own = [patched[i] - base[i] for i in range(len(clean)) if template[i] == name]
        means.append(sum(own) / len(own))
    above = sum(patched[i] - corrupted[i] for i in range(len(clean)))
    below = sum(clean[i] - corrupted[i] for i in range(len(clean)))
    return sum(means) / len(means), above / below


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), direction=st.sampled_from(["denoise", "noise"]))
def test_effects_and_recoveries_are_those_of_the_definitions(seed, direction):
    patched, clean, corrupted = outcomes(seed)
    options = {"permutations": 20, "resamples": 20, "direction": direction}
    result = activation_patching(
        patched, clean, corrupted, clusters=TEMPLATES, axes=AXES, **options
    )
    effect, recovery = (result.maps(values) for values in (result.effect, result.recovery))
    for name, cells in patched.items():
        for at in np.ndindex(cells.shape[:-1]):
            found = effect[name][at], recovery[name][at]
            expected = by_loops(cells[at], clean, corrupted, TEMPLATES, direction)
            np.testing.assert_allclose(found, expected, atol=1e-12)
    base = corrupted if direction == "denoise" else clean
    np.testing.assert_array_equal(result.arrays()["heads/effects"], patched["heads"] - base)
    assert (result.prompts, result.clusters, result.prompts_solved) == (N, 8, 1.0)


def test_noising_is_denoising_with_the_roles_exchanged():
    patched, clean, corrupted = outcomes()
    one = activation_patching(patched, clean, corrupted, direction="noise")
    other = activation_patching(patched, corrupted, clean, direction="denoise", only="all")
    np.testing.assert_allclose(one.effect, other.effect)
    np.testing.assert_allclose(one.p_corrected, other.p_corrected)
    np.testing.assert_allclose(one.recovery, 1.0 - other.recovery)
    np.testing.assert_allclose(one.recovery_low, 1.0 - other.recovery_high)


def test_full_and_no_recovery_and_the_sign_of_the_smallest_p():
    _, clean, corrupted = outcomes(n=7)
    patched = np.stack([clean, corrupted, 2 * corrupted - clean])[:, None]
    result = activation_patching(patched, clean, corrupted)
    np.testing.assert_allclose(result.recovery, [1.0, 0.0, -1.0], atol=1e-12)
    np.testing.assert_allclose(result.recovery_low, result.recovery_high, atol=1e-12)
    assert result.p.tolist() == result.p_corrected.tolist() == [1 / 64, 1.0, 1 / 64]
    assert result.significant.tolist() == [True, False, True]


def test_no_recovery_has_no_sign_in_the_headline():
    _, clean, corrupted = outcomes()
    nearly = (corrupted - 1e-6)[None, None]
    result = activation_patching(nearly, clean, corrupted, direction="noise")
    assert result.recovery[0] < 0
    assert ", recovery 0.00, p " in result.headline("units", ())


def test_all_components_are_corrected_together():
    patched, clean, corrupted = outcomes()
    both = activation_patching(patched, clean, corrupted, clusters=TEMPLATES)
    alone = activation_patching(patched["heads"], clean, corrupted, clusters=TEMPLATES)
    np.testing.assert_array_equal(both.maps(both.p)["heads"], alone.maps(alone.p)[""])
    assert (both.maps(both.p_corrected)["heads"] >= alone.maps(alone.p_corrected)[""]).all()
    assert both.p_corrected[-4:].sum() > alone.p_corrected.sum()


def test_impossible_cells_have_no_effect_and_do_not_count():
    patched, clean, corrupted = outcomes()
    possible = {"resid": np.array([[False, True, True], [False, True, True]])}
    result = activation_patching(patched, clean, corrupted, clusters=TEMPLATES, possible=possible)
    effects = result.arrays()["resid/effects"]
    assert not effects[:, 0].any()
    assert effects[:, 1:].all()
    p = result.arrays()["resid/p_corrected"]
    assert (p[:, 0] == 1.0).all()
    fewer = {"resid": patched["resid"][:, 1:], "heads": patched["heads"]}
    expected = activation_patching(fewer, clean, corrupted, clusters=TEMPLATES).arrays()
    np.testing.assert_array_equal(p[:, 1:], expected["resid/p_corrected"])


def test_no_gap_has_no_recovery():
    patched, clean, _ = outcomes()
    result = activation_patching(patched, clean, clean + 1e-9, only="all")
    assert np.isnan(result.recovery).all()
    assert np.isfinite(result.effect).all()
    assert "there is no recovery" in " ".join(result.notes)
    assert not any("recovery" in name for name in result.scalars())
    for outcome in ("rank", "probability"):
        result = activation_patching(patched, clean, clean - 3.0, outcome=outcome)
        assert np.isnan(result.recovery).all()
        assert result.gap == pytest.approx(3.0)
        assert result.notes == ()
        assert np.isnan(result.prompts_solved)


def test_a_gap_that_may_be_zero_is_noted():
    patched, clean, _ = outcomes()
    random = np.random.default_rng(0)
    result = activation_patching(patched, clean, clean + random.normal(size=N), only="all")
    assert result.gap_low < 0 < result.gap_high
    assert "does not tell clean from corrupted" in " ".join(result.notes)
    assert np.isfinite(result.recovery).all()


def test_mean_of_ratios_leaves_out_prompts_without_a_gap():
    _, clean, corrupted = outcomes(n=12)
    corrupted[3] = clean[3]
    share = np.linspace(0, 1, 12)
    patched = (corrupted + share * (clean - corrupted))[None]
    patched[:, 3] += 7.0
    options = {"only": "all", "recovery": "mean_of_ratios"}
    result = activation_patching(patched, clean, corrupted, **options)
    assert result.recovery[0] == pytest.approx(np.delete(share, 3).mean())
    assert result.recovery_low[0] < result.recovery[0] < result.recovery_high[0]


def test_only_solved_prompts():
    patched, clean, corrupted = outcomes()
    clean[:11] = -0.1
    with pytest.raises(InputError, match=r"answers 31% of the pairs .* set only: all"):
        activation_patching(patched, clean, corrupted)
    everything = activation_patching(patched, clean, corrupted, only="all")
    assert everything.prompts_solved == 5 / 16
    assert everything.prompts == 16
    clean[2:11] = 3.0
    solved = activation_patching(patched, clean, corrupted, only="solved")
    fewer = {name: cells[..., 2:] for name, cells in patched.items()}
    expected = activation_patching(fewer, clean[2:], corrupted[2:])
    np.testing.assert_array_equal(solved.effects, expected.effects)
    np.testing.assert_array_equal(solved.p_corrected, expected.p_corrected)
    assert solved.prompts_solved == 14 / 16
    assert solved.prompts == 14
    assert "only the 14 of 16 prompts" in solved.notes[0]
    with pytest.raises(InputError, match="needs the logit difference"):
        activation_patching(patched, clean, corrupted, only="solved", outcome="rank")
    given = {"only": "solved", "outcome": "rank", "solved": np.arange(16) > 1}
    ranked = activation_patching(patched, clean, corrupted, **given)
    np.testing.assert_array_equal(ranked.effects, expected.effects)
    assert ranked.prompts_solved == 14 / 16


def test_few_clusters():
    patched, clean, corrupted = outcomes()
    four = np.arange(N) % 4
    with pytest.raises(InputError, match=r"^4 templates; .* at least 6: .*clusters_by: prompt"):
        activation_patching(patched, clean, corrupted, clusters=four)
    result = activation_patching(patched, clean, corrupted, clusters=four, permutations=0)
    assert np.isnan(result.p).all()
    assert not result.significant.any()
    line = result.headline("units", ())
    assert line.startswith("10 cells, no test of the logit difference; strongest: resid layer")
    assert np.isfinite(result.effect_low).all()
    assert result.notes == ("4 templates: percentile intervals of fewer than 10 are too narrow",)
    prompts = activation_patching(patched, clean, corrupted, clusters=four, clusters_by="prompt")
    assert prompts.clusters == N
    assert prompts.notes == ()


@pytest.mark.parametrize("outcome", ["kl", "hidden_change"])
def test_a_divergence_from_the_clean_run_is_not_tested(outcome):
    divergence, zeros = np.random.default_rng(0).random((2, 3, 12)), np.zeros(12)
    given = {"outcome": outcome, "only": "all"}
    noised = activation_patching(divergence, zeros, divergence[0, 0], direction="noise", **given)
    assert np.isnan(noised.p).all()
    assert not noised.significant.any()
    assert "a divergence from the clean run is never negative: no test of 0" in noised.notes
    assert np.isfinite(noised.effect_low).all()
    denoised = activation_patching(divergence, zeros, divergence[0, 0], **given)
    assert np.isfinite(denoised.p).all()


def test_wrong_input_is_named():
    patched, clean, corrupted = outcomes()
    with pytest.raises(InputError, match="direction is 'denoising'; expected 'denoise' or 'noise'"):
        activation_patching(patched, clean, corrupted, direction="denoising")
    with pytest.raises(InputError, match=r"resid has the shape \(2, 3, 16\); expected 15 prompts"):
        activation_patching(patched, clean[:15], corrupted[:15])
    with pytest.raises(InputError, match=r"corrupted has the shape \(15,\); expected 16 prompts"):
        activation_patching(patched, clean, corrupted[:15])
    patched["heads"][0, 0, 0] = np.nan
    with pytest.raises(InputError, match="heads holds NaN"):
        activation_patching(patched, clean, corrupted)


def test_axes_go_by_the_name_of_the_component():
    patched, clean, corrupted = outcomes()
    axes = dict(reversed(AXES.items()))
    result = activation_patching(patched, clean, corrupted, axes=axes)
    assert result.axes == AXES
    np.testing.assert_array_equal(result.arrays()["resid/effects"], patched["resid"] - corrupted)
    default = activation_patching(patched, clean, corrupted, axes={"heads": AXES["heads"]})
    assert default.axes["resid"] == {"layer": range(2), "position": range(3)}


def test_table_and_scalars_name_the_cells():
    patched, clean, corrupted = outcomes()
    result = activation_patching(patched, clean, corrupted, clusters=TEMPLATES, axes=AXES)
    table = result.tables()["cells"]
    assert {len(column) for column in table.values()} == {10}
    at = 5  # the last of the residual stream
    named = [table[name][at] for name in ("component", "layer", "position", "head")]
    assert named == ["resid", 1, "end", ""]
    assert table["effect"][at] == result.maps(result.effect)["resid"][1, 2]
    assert table["component"][9] == "heads"
    assert table["head"][9] == 1
    scalars = result.scalars()
    best = np.abs(table["effect"][:6]).argmax()
    assert scalars["resid/strongest_layer"] == table["layer"][best]
    assert "resid/strongest_position" not in scalars  # it has a name
    assert scalars["resid/strongest_recovery"] == result.recovery[best]
    assert scalars["resid/strongest_p_value"] == result.p_corrected[best]
    assert scalars["gap"] == result.gap
    assert scalars["prompts_solved"] == 1.0


@pytest.mark.parametrize(
    ("clusters", "permutations", "level", "least"),
    [(6, 1000, 0.95, None), (6, 1000, 0.99, 1 / 32), (8, 9, 0.9, None), (8, 9, 0.95, 0.1)],
)
def test_a_note_says_where_no_cell_can_be_significant(clusters, permutations, level, least):
    _, clean, corrupted = outcomes(n=clusters)
    given = {"permutations": permutations, "level": level}
    result = activation_patching(clean[None], clean, corrupted, **given)
    notes = [note for note in result.notes if note.startswith("p is at least")]
    assert result.significant.any() == (least is None)
    if least is None:
        assert not notes
    else:
        assert result.p.min() >= least
        advice = "add prompts or permutations"
        expected = f"p is at least {least:.3g}: no cell can be significant at {1 - level:.2g}"
        assert notes == [f"{expected}; {advice}"]
