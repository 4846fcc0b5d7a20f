import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from palinka.analyses.category_score import category_score
from palinka.errors import InputError


def plain_scores(latents, targets):
    """The specification, latent by latent."""
    scores = []
    for column in latents.T.astype(np.float64):
        inside, outside = column[targets], column[~targets]
        if inside.sum() > 0 and outside.sum() > 0:
            scores.append(inside[inside != 0].mean() / outside[outside != 0].mean())
        else:
            scores.append(0.0)
    return np.array(scores)


@st.composite
def labelled_latents(draw, least=0.0):
    values = st.one_of(st.just(0.0), st.integers(-8, 64).map(lambda n: max(least, n / 8)))
    shape = st.tuples(st.integers(2, 15), st.integers(1, 6))
    latents = draw(arrays(np.float32, shape, elements=values))
    n_targets = draw(st.integers(1, len(latents) - 1))
    targets = np.zeros(len(latents), dtype=bool)
    targets[draw(st.permutations(range(len(latents))))[:n_targets]] = True
    return latents, targets


@given(labelled_latents())
@settings(max_examples=80, deadline=None)
def test_equals_the_plain_transcription(case):
    latents, targets = case
    result = category_score(latents, targets)
    np.testing.assert_allclose(result.score, plain_scores(latents, targets), rtol=1e-12)
    assert result.score.dtype == np.float64
    assert result.auc is None
    assert result.p_value is None


@given(labelled_latents(least=-8.0))
@settings(max_examples=40, deadline=None)
def test_signed_activations_follow_the_same_rule(case):
    latents, targets = case
    result = category_score(latents, targets)
    np.testing.assert_allclose(result.score, plain_scores(latents, targets), rtol=1e-12)
    assert bool(result.notes) == bool((latents < 0).any())


def some_latents(seed=0, tokens=40, latents=15, dtype=np.float64):
    random = np.random.default_rng(seed)
    dense = random.exponential(size=(tokens, latents))
    return np.where(random.random((tokens, latents)) < 0.4, dense, 0.0).astype(dtype)


def some_targets(tokens=40, n=8):
    return np.arange(tokens) % (tokens // n) == 0


@pytest.mark.parametrize("working_size", [1, 50, 500, 1 << 22])
def test_p_values_equal_shuffling_one_by_one(working_size, monkeypatch):
    module = sys.modules["palinka.analyses.category_score"]
    monkeypatch.setattr(module, "WORKING_SIZE", working_size)
    latents, targets = some_latents(), some_targets()
    result = category_score(latents, targets, permutations=60, seed=4)
    random = np.random.default_rng(4)
    shuffled = random.permuted(np.tile(targets, (60, 1)), axis=1)
    null = np.array([plain_scores(latents, mask).max() for mask in shuffled])
    expected = [(1 + (null >= score).sum()) / 61 for score in plain_scores(latents, targets)]
    np.testing.assert_allclose(result.p_value, expected, rtol=1e-12)
    assert result.auc is not None


def test_shuffles_that_change_nothing_count_as_equally_good():
    # Two tokens: half of all shuffles are the labels themselves, whatever the order of sums.
    latents = np.array([[0.3, 0.1], [0.1, 0.3]])
    result = category_score(latents, [True, False], permutations=500)
    assert result.p_value[0] == 1.0
    # A latent that is 0 has a score of 0, which every shuffle reaches.
    assert category_score(np.zeros((4, 2)), [1, 0, 0, 0], permutations=9).p_value.tolist() == [1, 1]


def test_seeds_determine_the_shuffles():
    latents, targets = some_latents(), some_targets()
    first, second, other = (
        category_score(latents, targets, permutations=50, seed=seed).p_value for seed in (1, 1, 2)
    )
    assert (first == second).all()
    assert (first != other).any()


def p_values(draws, seed, effect=1.0):
    """The p-value of the latent with the highest score, which is that of the whole family."""
    random = np.random.default_rng(seed)
    targets = some_targets(60, 12)
    found = np.empty(draws)
    for draw in range(draws):
        latents = some_latents(random.integers(1 << 31), 60, 12)
        latents[targets, 3] = effect * latents[targets, 3]
        result = category_score(latents, targets, permutations=99, seed=draw)
        found[draw] = result.p_value.min() if effect == 1.0 else result.p_value[3]
    return found


def test_p_is_uniform_under_the_null(assert_uniform):
    assert_uniform(p_values(500, seed=1), steps=100)


@pytest.mark.slow
def test_p_is_uniform_under_the_null_over_many_draws(assert_uniform):
    assert_uniform(p_values(2000, seed=2), steps=100)


def test_a_preference_is_found():
    assert (p_values(60, seed=3, effect=12.0) <= 0.05).mean() > 0.9


def test_takes_torch_and_gives_scalars_and_a_table():
    latents = torch.tensor([[4.0, 1.0], [0.0, 1.0], [2.0, 0.0]], dtype=torch.bfloat16)
    targets = torch.tensor([True, False, False])
    result = category_score(latents, targets, detector=True)
    assert result.score.tolist() == [2.0, 1.0]
    assert result.auc.tolist() == [1.0, 0.75]
    assert result.scalars() == {"best": 0, "best_score": 2.0, "best_auc": 1.0}
    table = result.tables()["best_latents"]
    assert list(table["latent"]) == [0, 1]
    assert list(table["rank"]) == [1, 2]
    assert list(table["score"]) == [2.0, 1.0]
    with_p = category_score(latents, targets, permutations=9)
    assert 0 < with_p.scalars()["best_p_value"] <= 1


@pytest.mark.parametrize(
    ("latents", "targets", "message"),
    [
        (np.ones((4, 2)), [False] * 4, "none of the 4 tokens are targets"),
        (np.ones((4, 2)), [True] * 4, "all of the 4 tokens are targets"),
        (np.ones((4, 2)), [True, False], r"shape \(2,\) and there are 4 tokens"),
        (np.ones((4, 2)), [2, 0, 0, 0], "other values than true and false"),
        (np.full((4, 2), np.nan), [True] + [False] * 3, "NaN"),
        (np.ones(4), [True] + [False] * 3, "shape"),
    ],
)
def test_bad_input(latents, targets, message):
    with pytest.raises(InputError, match=message):
        category_score(latents, targets)


def test_refuses_a_negative_number_of_permutations():
    with pytest.raises(InputError, match="permutations is -1"):
        category_score(np.ones((4, 2)), [True, False, False, False], permutations=-1)
