import numpy as np
import pytest
from scipy import stats

from palinka.analyses import steering
from palinka.errors import InputError
from palinka.interventions.steering import _shuffled

ALPHAS = np.array([-0.4, -0.1, -0.05, 0.0, 0.05, 0.1, 0.4])


def doses(random, slopes, prompts=12):
    """Outcomes that saturate in alpha, `(directions, strengths, prompts)`, exactly 0 at 0."""
    noise = 1.0 + 0.2 * random.standard_normal((len(slopes), 1, prompts))
    return np.tanh(np.multiply.outer(slopes, ALPHAS))[..., None] * noise


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    clean = random.standard_normal(12)
    kl = np.square(ALPHAS) * np.array([[2.0], [0.2]])
    names = ("isotropic", "shuffled_labels")
    controls = {name: clean + doses(random, random.standard_normal(9)) for name in names}
    return {
        "steered": clean + doses(random, np.array([6.0, -0.5])), "clean": clean, "alphas": ALPHAS,
        "controls": controls, "kl": kl, "control_kl": dict.fromkeys(controls, kl[:1]),
        "clusters": np.arange(12) % 6, "directions": ["up", "down"],
    }  # fmt: skip


def slow(data, small=0.1, at=0.1):
    """The definitions, value by value."""
    clusters = np.unique(data["clusters"])
    members = [data["clusters"] == c for c in clusters]

    def effects(outcomes):
        change = outcomes - data["clean"]
        return np.array([[np.mean([row[m].mean() for m in members]) for row in d] for d in change])

    chosen = np.abs(ALPHAS) <= small
    found = {"effect": effects(data["steered"])}
    found["slope"] = np.polyfit(ALPHAS[chosen], found["effect"][:, chosen].T, 1)[0]
    found["p"] = []
    for outcomes in data["controls"].values():
        null = np.polyfit(ALPHAS[chosen], effects(outcomes)[:, chosen].T, 1)[0]
        found["p"].append(
            [(1 + (np.abs(null) >= abs(s)).sum()) / (len(null) + 1) for s in found["slope"]]
        )
    sides = [np.flatnonzero(ALPHAS <= 0)[::-1], np.flatnonzero(ALPHAS >= 0)]
    found["effect_at_kl"] = [
        [np.interp(at, k[s], e[s], right=np.nan) for s in sides]
        for e, k in zip(found["effect"], data["kl"], strict=True)
    ]
    return found


def test_effects_slopes_and_p_values_are_those_of_the_definitions(data):
    result = steering(**data)
    for name, expected in slow(data).items():
        np.testing.assert_allclose(getattr(result, name), expected, atol=1e-12)
    assert np.isnan(result.effect_at_kl[1]).all()
    assert (result.p[:, 0] == 1 / 10).all()
    assert result.scalars()["up/isotropic_p_value"] == 0.1
    assert "down/effect_at_kl_positive" not in result.scalars()
    assert "p 0.1 (not significant) against shuffled labels" in result.headline("", ())


def test_a_table_has_no_arrays_of_other_axes(data):
    for name in ("steered", "kl"):  # as many directions as strengths
        data[name] = np.repeat(data[name], [3, 4], axis=0)
    result = steering(**data | {"directions": list("abcdefg")})
    names = {"direction", "slope", "slope_low", "slope_high", "p_isotropic", "p_shuffled_labels"}
    sides = {"effect_at_kl_negative", "effect_at_kl_positive"}
    assert result.tables()["directions"].keys() == names | sides


def test_intervals_are_over_clusters(data):
    result = steering(**data)
    assert (result.slope_low < result.slope).all()
    assert (result.slope < result.slope_high).all()
    assert not result.effect_low[:, 3].any()
    assert not result.effect_high[:, 3].any()
    alike = steering(**{**data, "clusters": np.zeros(12)})
    assert np.isnan(alike.slope_low).all()
    assert "fewer than 10" in result.notes[0]


def test_the_divergence_counts_where_it_is_first_reached(data):
    data["kl"][0] = [0.4, 0.2, 0.05, 0.0, 0.2, 0.05, 0.3]
    effect = steering(**data).effect[0]
    expected = [effect[2] + (effect[1] - effect[2]) / 3, effect[3] + (effect[4] - effect[3]) / 2]
    np.testing.assert_allclose(steering(**data).effect_at_kl[0], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alphas": 10 * ALPHAS}, "at least two alphas up to 0.1"),
        ({"clean": np.zeros(5)}, "(2, 7, 12); expected (…, 7 strengths, 5 prompts)"),
    ],
)
def test_data_that_do_not_fit_are_rejected(data, changes, message):
    with pytest.raises(InputError) as error:
        steering(**data | changes)
    assert message in str(error.value)


def linear(directions, readout):
    """Outcomes of 6 prompts of a model whose outcome is linear along a direction of norm 1."""
    along = directions @ readout / np.linalg.norm(directions, axis=1)
    return np.multiply.outer(along, ALPHAS)[..., None] * np.ones(6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["isotropic", "pairs", "groups"])
def test_p_is_uniform_where_the_direction_means_nothing(kind):
    """Directions are drawn as controls are, or labels have no meaning; 1,000 studies."""
    p = []
    for study in range(1000):
        random = np.random.default_rng([3, study])
        readout = random.standard_normal(30) * np.linspace(0.2, 2, 30)
        if kind == "isotropic":
            direction, *controls = random.standard_normal((60, 30))
        else:
            frames = random.standard_t(4, (24, 30)) * np.linspace(3, 0.1, 30)
            a, b = random.standard_t(4, (2, 24, 30)) + (frames if kind == "pairs" else 0)
            direction = b.mean(0) - a.mean(0)
            controls = _shuffled(a, b, 59, kind == "pairs", random)
        kl = np.zeros((1, len(ALPHAS)))
        result = steering(
            linear(direction[None], readout), np.zeros(6), ALPHAS,
            {"control": linear(np.array(controls), readout)}, kl, {"control": kl}, ["direction"],
            resamples=0,
        )  # fmt: skip
        p.append(result.p[0, 0] - random.random() / 60)
    assert 0.03 <= np.mean(np.array(p) <= 0.05) <= 0.07
    assert stats.kstest(p, "uniform").pvalue > 1e-3
