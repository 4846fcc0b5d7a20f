import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from palinka.analyses.stats.ground_truth import (
    feature_uniqueness,
    firing_scores,
    hedging,
    known_absorption,
    mean_correlation_coefficient,
    related_features,
)


def true_and_learned() -> tuple[np.ndarray, ...]:
    """Latents, strengths, directions of latents and true ones; some never fire."""
    random = np.random.default_rng(0)
    d, w = random.standard_normal((9, 5)), random.standard_normal((14, 5))
    w[:5] = -d[:5] + 0.1 * w[:5]
    s = random.exponential(size=(200, 9)) * (random.random((200, 9)) < 0.2)
    z = random.standard_normal((200, 14)) * (random.random((200, 14)) < 0.2)
    z[:, :5] = s[:, :5] * (random.random((200, 5)) < 0.8)
    z[:, 12] = s[:, 8] = 0.0
    return z, s, w, d


def test_scores_against_true_features() -> None:
    z, s, w, d = true_and_learned()
    cosines = np.abs(w @ d.T) / np.linalg.norm(w, axis=1)[:, None] / np.linalg.norm(d, axis=1)
    pairs = linear_sum_assignment(-cosines)
    assert mean_correlation_coefficient(w, d) == pytest.approx(cosines[pairs].mean())
    nearest = cosines.argmax(axis=1)
    assert feature_uniqueness(w, d) == (len(set(nearest)) / 14, len(set(nearest)) / 9)
    found, pairings = firing_scores(z, s, w, d), list(zip(range(14), nearest, strict=True))
    one_to_one = list(zip(*pairs, strict=True))
    alive = [pair for pair in pairings if z[:, pair[0]].any()]
    for ending, each in (("", pairings), ("_alive", alive), ("_matched", one_to_one)):
        rows = []
        for latent, feature in each:
            fires, active = z[:, latent] != 0, s[:, feature] > 0
            hits = (fires & active).sum()
            precision = hits / fires.sum() if fires.any() else 0.0
            recall = hits / active.sum() if active.any() else 0.0
            f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
            rows.append([precision, recall, f1, (fires == active).mean()])
        names = [f"{name}{ending}" for name in ("precision", "recall", "f1", "accuracy")]
        np.testing.assert_allclose(
            [found[n].value for n in names], np.mean(rows, axis=0), rtol=1e-12
        )


def test_scores_equal_those_of_sae_lens() -> None:
    theirs = pytest.importorskip("sae_lens.synthetic.evals")
    torch = pytest.importorskip("torch")
    z, s, w, d = true_and_learned()
    tensors = [torch.from_numpy(x).float() for x in (z, s, w, d)]
    ours = firing_scores(z, s, w, d)
    scores = vars(theirs.compute_classification_metrics(*tensors))
    expected = [scores[n] for n in ("precision", "recall", "f1_score", "accuracy")]
    expected += [theirs.mean_correlation_coefficient(*tensors[2:])]
    expected += [theirs.feature_uniqueness(*tensors[2:])]
    found = [ours[n].value for n in ("precision", "recall", "f1", "accuracy")]
    found += [mean_correlation_coefficient(w, d), feature_uniqueness(w, d)[0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_influences_are_those_of_leaving_a_row_out() -> None:
    z, s, w, d = true_and_learned()
    whole = firing_scores(z, s, w, d)
    for row in (0, 7, 100):
        kept = np.arange(len(z)) != row
        without = firing_scores(z[kept], s[kept], w, d)
        for name, ratio in whole.items():
            change = ratio.value - without[name].value
            assert change == pytest.approx(ratio.influence[row], rel=0.4, abs=2e-4), name


def test_absorption_is_that_of_known_parents() -> None:
    random = np.random.default_rng(1)
    parents = np.array([-1, 0, 0, -1, 3, -1, 5])
    s = (random.random((4000, 7)) < 0.4).astype(float)
    s[:, 1:3] *= s[:, [0]]
    s[:, 4] *= s[:, 3]
    z, d = s.copy(), np.eye(7, 9)
    absorbed = (s[:, 1] > 0) & (random.random(4000) < 0.5)
    missed = random.random(4000) < 0.1
    z[absorbed | missed, 0] = 0.0
    z[:, 2] *= random.random(4000) < 0.7
    z[absorbed, 1:3] = random.random((absorbed.sum(), 2)) < 0.3  # also of a child that is silent
    w = d.copy()
    w[5] = np.eye(9)[8]  # the parent 5 has no latent
    on = s[:, 0] > 0
    child = on & ((s[:, 1] > 0) | (s[:, 2] > 0))
    rates = [(z[mask, 0] == 0).mean() for mask in (child, on & ~child)]
    found = known_absorption(z, s, w, d, parents)
    assert found["absorption"] == pytest.approx((rates[0] - rates[1]) / 2)  # 3 absorbs nothing
    by_child = ((z[:, 0] == 0) & ((z[:, 1] != 0) | (z[:, 2] != 0)))[child].mean()
    assert found["absorbed_by_child"] == pytest.approx(by_child / 2)
    assert by_child < rates[0]
    assert found["absorption_rated"] == pytest.approx(2 / 3)
    none = known_absorption(z, s, np.eye(9)[7:], d, parents)
    assert (np.isnan(none["absorption"]), none["absorption_rated"]) == (True, 0.0)


def test_hedging_is_the_share_of_related_directions() -> None:
    random = np.random.default_rng(2)
    parents = np.array([-1, 0, 0] + [-1] * 27)
    s = random.random((500, 30))
    s[:, 3] = s[:, 0] + 0.01 * s[:, 3]
    related = related_features(s, parents)
    assert {0, 2} <= set(related[1])
    assert {1, 2, 3} <= set(related[0])
    assert all(one not in own and 10 <= len(own) <= 12 for one, own in enumerate(related))
    correlations = np.abs(np.corrcoef(s.T))
    np.testing.assert_array_equal(related[20], np.sort(np.argsort(-correlations[20])[1:11]))
    d = np.linalg.qr(random.standard_normal((40, 40)))[0][:30]
    w = 5.0 * d[[0, 7]] + 3.0 * d[[3, 7]] + 4.0 * d[[1, 7]]
    w[1] = -2.0 * d[7]
    found = hedging(w, d, related)
    assert found["hedging"] == pytest.approx((1.0 + 0.0) / 2)  # √(3² + 4²) / 5, and none
    assert found["hedging_rated"] == 1.0
