import numpy as np
import pytest
from scipy import stats

from palinka.analyses import subspace_removal


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    clean = random.standard_normal(12)
    names = ("matched", "isotropic")
    return {
        "removed": clean + random.standard_normal((2, 3, 12)) + np.array([[0.0], [4.0]])[..., None],
        "clean": clean,
        "controls": {name: clean + random.standard_normal((2, 3, 9, 12)) for name in names},
        "kl": random.random((2, 3, 12)), "variance_removed": random.random((2, 3)),
        "control_variance": {name: random.random((2, 3, 9)) for name in names},
        "dormant": [[0.75] * 3, [np.nan] * 3], "ranks": [1, 2, 4],
        "sites": ["hidden.1", "hidden.3"], "clusters": np.arange(12) % 4,
    }  # fmt: skip


def test_effects_and_p_values_are_those_of_the_definitions(data):
    result = subspace_removal(**data)
    members = [data["clusters"] == cluster for cluster in range(4)]

    def effect(outcomes):
        return np.mean([(outcomes - data["clean"])[m].mean() for m in members])

    for s in range(2):
        for r in range(3):
            found = effect(data["removed"][s, r])
            np.testing.assert_allclose(result.effect[s, r], found)
            expected = np.mean([data["kl"][s, r][m].mean() for m in members])
            np.testing.assert_allclose(result.kl[s, r], expected)
            assert result.effect_low[s, r] < found < result.effect_high[s, r]
            for c, outcomes in enumerate(data["controls"].values()):
                null = np.array([effect(draw) for draw in outcomes[s, r]])
                np.testing.assert_allclose(result.control_effect[c, s, r], null, atol=1e-12)
                p = (1 + (np.abs(null) >= abs(found)).sum()) / 10
                np.testing.assert_allclose(result.p[c, s, r], p)
                ends = np.quantile(null, [0.025, 0.975])
                found_ends = result.null_low[c, s, r], result.null_high[c, s, r]
                np.testing.assert_allclose(found_ends, ends)
        null = result.control_effect[c]
        sets = np.concatenate([result.effect[..., None], null], axis=-1)
        z = np.abs(stats.zscore(sets, axis=-1)).reshape(6, 10)
        for at, own in enumerate(z[:, 0]):
            p = (1 + sum(z[:, draw].max() >= own for draw in range(1, 10))) / 10
            expected = max(p, result.p[c].flat[at])
            np.testing.assert_allclose(result.p_corrected[c].flat[at], expected)
    assert (result.p[:, 1] == 0.1).all()
    off = data["control_variance"]["matched"] / data["variance_removed"][..., None]
    assert result.notes[0].startswith(f"{(np.abs(off - 1) > 0.05).mean():.0%} of the matched")
    strongest = np.abs(result.effect[1]).argmax()
    effect, share = result.effect[1, strongest], result.variance_removed[1, strongest]
    p = result.p_corrected[0, 1, strongest]
    assert result.headline("", ()) == (
        f"without rank {2**strongest} at hidden.3 ({share:.0%} of the variance), the logit "
        f"difference changes by {effect:+.3g}, p {p:.3g} (not significant) against 9 "
        "variance-matched controls, corrected for 6 cells"
    )
    assert result.scalars()["hidden.3/rank_4/matched_p_value"] == result.p_corrected[0, 1, 2]
    assert result.scalars()["hidden.1/rank_2/dormant"] == 0.75
    assert "hidden.3/rank_2/dormant" not in result.scalars()
    table = result.tables()["subspaces"]
    assert table["site"][2:4] == ["hidden.1", "hidden.3"]
    assert table["p_corrected_matched"][5] == result.p_corrected[0, 1, 2]


@pytest.mark.slow
def test_p_is_uniform_where_the_subspace_is_one_of_the_controls():
    p = []
    for study in range(1000):
        random = np.random.default_rng([5, study])
        own, *others = random.standard_t(3, (60, 1)) + 0.3 * random.standard_normal((60, 6))
        share = {"matched": np.ones((1, 1, 59))}
        given = np.array(others)[None, None]
        result = subspace_removal(
            own[None, None], np.zeros(6), {"matched": given}, np.zeros((1, 1, 6)), np.ones((1, 1)),
            share, [1], ["hidden.1"], resamples=0,
        )  # fmt: skip
        p.append(result.p[0, 0, 0] - random.random() / 60)
    assert 0.03 <= np.mean(np.array(p) <= 0.05) <= 0.07
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_the_smallest_of_many_p_values_is_corrected():
    """Subspaces that are one of the controls; 1,000 studies of 18 cells, one prompt each."""
    smallest = []
    for study in range(1000):
        own, *others = np.random.default_rng([6, study]).standard_normal((100, 6, 3))
        shares = np.ones((6, 3)), {"matched": np.ones((6, 3, 99))}
        given = {"matched": np.moveaxis(others, 0, -1)[..., None]}
        result = subspace_removal(
            own[..., None], np.zeros(1), given, np.zeros((6, 3, 1)), *shares, [1, 2, 4],
            list("abcdef"), resamples=0,
        )  # fmt: skip
        smallest.append([result.p.min(), result.p_corrected.min()])
    single, corrected = (np.array(smallest) <= 0.05).mean(axis=0)
    assert single > 0.4
    assert 0.02 <= corrected <= 0.07
