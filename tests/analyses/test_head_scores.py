from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from palinka.analyses.head_scores import HeadScores, head_scores
from palinka.errors import InputError

SHAPE = (2, 3)  # layers, heads
TEXTS = 8
COUNTS = np.array([4.0, 10, 12, 7, 5, 30, 6, 9])


def data(seed: int = 0, **more: NDArray[np.float64]) -> dict[str, Any]:
    """Scores of 0.3 like their reference, but of 0.6 in the head 1 of layer 1."""
    random = np.random.default_rng(seed)
    sums = COUNTS * (0.3 + 0.02 * random.standard_normal((*SHAPE, TEXTS)))
    sums[1, 1] += 0.3 * COUNTS
    given = {
        "sums": {"sink": sums},
        "counts": {"sink": COUNTS},
        "reference": {"sink": 0.3 * COUNTS},
    }
    for name, values in more.items():
        given["sums"][name] = values
        given["counts"][name] = COUNTS
        given["reference"][name] = values[0, 0]
    return given


def test_scores_are_means_over_texts_and_pooled_ones_over_queries() -> None:
    given = data()
    found = head_scores(**given).scores["sink"]
    for layer, head in np.ndindex(SHAPE):
        values = [given["sums"]["sink"][layer, head, text] / COUNTS[text] for text in range(TEXTS)]
        at = layer, head
        assert found.values[at].tolist() == values
        assert found.score[at] == pytest.approx(sum(values) / TEXTS)
        total = sum(value * count for value, count in zip(values, COUNTS, strict=True))
        assert found.pooled[at] == pytest.approx(total / COUNTS.sum())
        assert found.low[at] < found.score[at] < found.high[at]
        assert found.reference[at] == pytest.approx(0.3)
    assert found.strongest(1) == [(1, 1)]


def test_variance_of_the_distance_is_of_the_attention_of_one_text() -> None:
    random = np.random.default_rng(1)
    distances = random.integers(0, 9, (*SHAPE, TEXTS, 5)).astype(np.float64)
    weights = random.random((*SHAPE, TEXTS, 5))
    weights *= COUNTS[:, None] / weights.sum(axis=-1, keepdims=True)
    sums = {
        "distance": (weights * distances).sum(axis=-1),
        "distance_squared": (weights * distances**2).sum(axis=-1),
    }
    scores = head_scores(**data(**sums)).scores
    assert "distance_squared" not in scores
    found = scores["distance_variance"]
    for layer, head in np.ndindex(SHAPE):
        d, w = distances[layer, head], weights[layer, head]
        for text in range(TEXTS):
            mean = np.average(d[text], weights=w[text])
            expected = np.average((d[text] - mean) ** 2, weights=w[text])
            assert found.values[layer, head, text] == pytest.approx(expected)
        mean = np.average(d, weights=w)
        assert found.pooled[layer, head] == pytest.approx(np.average((d - mean) ** 2, weights=w))
    assert found.reference[0, 0] == pytest.approx(found.score[0, 0])


def p_values(differences: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """By all signs of texts: each head by itself, and the largest statistic of any head."""
    n = differences.shape[-1]
    nulls = []
    for signs in product([-1.0, 1.0], repeat=n):
        totals = differences @ np.array(signs)
        nulls.append(totals**2 / (n * (differences**2).sum(axis=-1)))
    null, observed = np.array(nulls), nulls[-1]
    own = (null >= observed * (1 - 1e-10)).mean(axis=0)
    largest = null.max(axis=(1, 2))
    corrected = (largest[:, None, None] >= observed * (1 - 1e-10)).mean(axis=0)
    return own, corrected


def test_heads_are_compared_with_the_reference_of_the_same_text() -> None:
    given = data()
    found = head_scores(**given).scores["sink"]
    own, corrected = p_values(found.values - 0.3)
    np.testing.assert_allclose(found.p, own)
    np.testing.assert_allclose(found.p_corrected, corrected)
    assert found.significant.tolist() == [[False] * 3, [False, True, False]]
    # A lower score than the reference's is not what the score is about.
    lower = given | {"reference": {"sink": 0.9 * COUNTS}}
    found = head_scores(**lower).scores["sink"]
    assert (found.p_corrected < 0.05).all()
    assert not found.significant.any()
    # A reference of each head: induction where nothing is repeated.
    own_reference = given | {"reference": given["sums"]}
    found = head_scores(**own_reference).scores["sink"]
    np.testing.assert_array_equal(found.reference, found.score)
    assert (found.p == 1).all()


def test_no_head_is_found_where_there_is_nothing_to_find() -> None:
    random = np.random.default_rng(3)
    found = 0
    for _ in range(200):
        values = random.standard_normal((*SHAPE, TEXTS))
        given: Any = {"sums": {"sink": values}, "counts": {"sink": np.ones(TEXTS)}}
        scores = head_scores(**given, reference={"sink": np.zeros(TEXTS)}, resamples=0).scores
        found += bool((scores["sink"].p_corrected <= 0.05).any())
    assert 2 <= found <= 19  # 10 expected; outside once in 400


def test_texts_of_a_cluster_are_averaged_first() -> None:
    given, names = data(), np.array(["b", "a", "a", "c", "d", "e", "f", "c"])
    found = head_scores(**given, clusters=names).scores["sink"]
    members = [np.flatnonzero(names == name) for name in "abcdef"]
    means = np.stack([found.values[..., each].mean(axis=-1) for each in members], axis=-1)
    np.testing.assert_allclose(found.score, means.mean(axis=-1))
    own, corrected = p_values(means - 0.3)
    np.testing.assert_allclose(found.p, own)
    np.testing.assert_allclose(found.p_corrected, corrected)
    with pytest.raises(InputError, match=r"^4 templates or frames; .* needs at least 6"):
        head_scores(**given, clusters=np.arange(TEXTS) // 2)


def test_two_versions_of_a_frame_are_no_two_texts() -> None:
    random = np.random.default_rng(3)
    found = {"frames": 0, "texts": 0}
    frames = np.tile(np.arange(TEXTS), 2)
    for _ in range(200):
        values = np.tile(random.standard_normal((*SHAPE, TEXTS)), 2)
        given: Any = {"sums": {"sink": values}, "counts": {"sink": np.ones(2 * TEXTS)}}
        given |= {"reference": {"sink": np.zeros(2 * TEXTS)}, "resamples": 0}
        for unit, clusters in (("frames", frames), ("texts", None)):
            p = head_scores(**given, clusters=clusters, permutations=200).scores["sink"].p_corrected
            found[unit] += bool((p <= 0.05).any())
    assert 2 <= found["frames"] <= 19  # 10 expected
    assert found["texts"] > 40


def test_random_tokens_are_independent_of_the_clusters_of_texts() -> None:
    given = data(induction=data()["sums"]["sink"])
    found = head_scores(**given, clusters=np.array([0, 0, 0, 1, 2, 3, 4, 5]))
    alone = head_scores(**given)
    np.testing.assert_array_equal(found.scores["induction"].p, alone.scores["induction"].p)
    assert (found.scores["sink"].p != alone.scores["sink"].p).any()


def test_texts_without_such_queries_are_left_out() -> None:
    given = data()
    few = COUNTS.copy()
    few[[1, 2]] = 0
    given["sums"]["sink"][..., [1, 2]] = 0
    found = head_scores(**given | {"counts": {"sink": few}})
    assert found.notes == ("sink: 2 of 8 texts have no token that it scores; left out",)
    score = found.scores["sink"]
    assert np.isnan(score.values[..., [1, 2]]).all()
    kept = [0, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(score.score, score.values[..., kept].mean(axis=-1))
    assert np.isfinite(score.p_corrected).all()
    few[0] = 0
    assert np.isnan(head_scores(**given | {"counts": {"sink": few}}).scores["sink"].p).all()
    none = head_scores(**given | {"counts": {"sink": 0 * few}})
    assert none.scores == {}


def test_a_test_needs_six_texts() -> None:
    given = {kind: {"sink": v["sink"][..., :5]} for kind, v in data().items()}
    message = "^5 texts; a test over texts needs at least 6: add texts, or set permutations: 0"
    with pytest.raises(InputError, match=message):
        head_scores(**given)
    found = head_scores(**given, permutations=0).scores["sink"]
    assert np.isnan(found.p_corrected).all()
    assert not found.significant.any()


@pytest.fixture
def result() -> HeadScores:
    return head_scores(**data(entropy=np.ones((*SHAPE, TEXTS))))


def test_findings(result: HeadScores) -> None:
    assert result.scalars() == {
        "sink/strongest_layer": 1.0,
        "sink/strongest_head": 1.0,
        "sink/strongest_score": pytest.approx(result.scores["sink"].score[1, 1]),
        "sink/heads_significant": 1.0,
    }
    tables = result.tables()
    assert tables["heads"]["layer"].tolist() == [0, 0, 0, 1, 1, 1]  # type: ignore[union-attr]
    assert list(tables["heads"]) == ["layer", "head", "sink", "entropy"]
    assert tables["heads"]["sink"][4] == result.scores["sink"].score[1, 1]
    strongest = tables["strongest_heads"]
    assert (strongest["layer"][0], strongest["head"][0], strongest["rank"][0]) == (1, 1, 1)
    assert strongest["p_corrected"][0] == result.scores["sink"].p_corrected[1, 1]
    assert result.arrays()["sink/values"].shape == (*SHAPE, TEXTS)
