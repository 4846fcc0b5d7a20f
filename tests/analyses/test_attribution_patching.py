import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from palinka.analyses import activation_patching, attribution_patching

TEMPLATES = np.repeat([f"template {i}" for i in range(7)], [3, 1, 2, 2, 4, 1, 1])
N = len(TEMPLATES)
AXES = {
    "resid": {"layer": [0, 1, 2], "position": ["subject", "end"]},
    "heads": {"layer": [0, 1, 2], "head": [0, 1]},
}


def outcomes(seed=0):
    """Estimated and exact outcomes of two components, and those of the prompts.

    The patch of a cell was not run, two cells have no effect, and one only has an exact one.
    """
    random = np.random.default_rng(seed)
    clean, corrupted = 2.0 + random.random(N), -1.0 - random.random(N)
    exact = {name: corrupted + random.normal(size=(3, 2, N)) for name in AXES}
    estimated = {name: x + 0.7 * random.normal(size=(3, 2, N)) for name, x in exact.items()}
    exact["heads"][2, 0] = np.nan
    for at in ((0, 0), (1, 1)):
        estimated["resid"][at] = exact["resid"][at] = corrupted
    estimated["resid"][0, 1] = corrupted
    return estimated, exact, clean, corrupted


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 12))
def test_agreement_is_that_of_the_cells_that_were_run(seed, k):
    estimated, exact, clean, corrupted = outcomes(seed)
    options = {"permutations": 0, "resamples": 0}
    data, options["clusters"] = (clean, corrupted, exact), TEMPLATES
    found = attribution_patching(estimated, *data, axes=AXES, k=k, **options)
    x, y = [], []
    for name in AXES:
        for at in np.ndindex(3, 2):
            pair = []
            for outcome in (estimated[name][at], exact[name][at]):
                own = [outcome[t == TEMPLATES] - corrupted[t == TEMPLATES] for t in set(TEMPLATES)]
                pair.append(np.mean([each.mean() for each in own]))
            i = found.maps(np.arange(12))[name][at]
            np.testing.assert_allclose((found.estimate[i], found.exact[i]), pair, atol=1e-12)
            if not np.isnan(pair[1]) and any(np.abs(pair) > 1e-12):
                x.append(pair[0])
                y.append(pair[1])
    assert (found.compared, found.k) == (9, min(k, 9))
    np.testing.assert_allclose(found.pearson, np.corrcoef(x, y)[0, 1])
    np.testing.assert_allclose(found.spearman, spearmanr(x, y).statistic)
    assert found.sign_agreement == pytest.approx(
        np.mean([a * b > 0 for a, b in zip(x, y, strict=True)])
    )
    top = [sorted(range(9), key=lambda i: -abs(v[i]))[:k] for v in (x, y)]
    assert found.recall_at_k == pytest.approx(len(set(top[0]) & set(top[1])) / min(k, 9))
    errors = np.abs(found.estimate - found.exact)
    assert errors[found.worst].tolist() == sorted(errors[~np.isnan(errors)])[:-10:-1]


def test_effects_are_those_of_the_estimates():
    estimated, exact, clean, corrupted = outcomes()
    found = attribution_patching(estimated, clean, corrupted, exact, clusters=TEMPLATES, axes=AXES)
    assert "cells are estimated to change" in found.headline("units", ())
    expected = activation_patching(estimated, clean, corrupted, clusters=TEMPLATES, axes=AXES)
    for name in ("effects", "effect_low", "recovery", "recovery_high", "p", "p_corrected"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.arrays()["heads/exact"].shape == (3, 2)
    measured = activation_patching(
        {name: np.nan_to_num(x) for name, x in exact.items()}, clean, corrupted, clusters=TEMPLATES
    )
    run = ~np.isnan(found.exact)
    np.testing.assert_array_equal(found.exact[run], measured.effect[run])


def test_the_worst_cells_are_listed_first():
    estimated, exact, clean, corrupted = outcomes()
    estimated["heads"][1, 0] += 9.0
    found = attribution_patching(estimated, clean, corrupted, exact, clusters=TEMPLATES, axes=AXES)
    table = found.tables()["worst"]
    assert [table[name][0] for name in ("component", "layer", "position", "head")] == [
        "heads", 1, "", 0
    ]  # fmt: skip
    assert len(table["exact"]) == 9
    assert table["estimate"][0] - table["exact"][0] == pytest.approx(9.0, abs=1.0)
    assert set(found.scalars()) >= {"pearson", "spearman", "sign_agreement", "recall_at_k"}


def test_without_patches_there_is_no_agreement():
    estimated, _, clean, corrupted = outcomes()
    found = attribution_patching(estimated, clean, corrupted, clusters=TEMPLATES, axes=AXES)
    assert (found.compared, found.k, len(found.worst)) == (0, 0, 0)
    assert np.isnan([found.pearson, found.spearman, found.sign_agreement]).all()
    assert np.isnan(found.exact).all()
    assert "pearson" not in found.scalars()
