import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from palinka.analyses.category_score import category_score
from palinka.analyses.stats.latents import auc_of_ranks, column_ranks
from palinka.errors import InputError


def plain_scores(latents, targets):
    """The specification, latent by latent."""
    scores = []
    for column in latents.T.astype(np.float64):
        inside, outside = column[targets], column[~targets]
        positive = inside.sum() > 0 and outside.sum() > 0
        means = (inside[inside != 0].mean(), outside[outside != 0].mean()) if positive else (0, 1)
        scores.append(means[0] / means[1])
    return np.array(scores)


@st.composite
def labelled_latents(draw, least):
    values = st.one_of(st.just(0.0), st.integers(-8, 64).map(lambda n: max(least, n / 8)))
    shape = st.tuples(st.integers(2, 15), st.integers(1, 6))
    latents = draw(arrays(np.float32, shape, elements=values))
    n_targets = draw(st.integers(1, len(latents) - 1))
    targets = np.zeros(len(latents), dtype=bool)
    targets[draw(st.permutations(range(len(latents))))[:n_targets]] = True
    return latents, targets


@pytest.mark.parametrize("least", [0.0, -8.0])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_equals_the_plain_transcription(least, data):
    latents, targets = data.draw(labelled_latents(least))
    result = category_score(latents, targets)
    np.testing.assert_allclose(result.score, plain_scores(latents, targets), rtol=1e-12)
    assert result.score.dtype == np.float64
    assert (result.auc, result.p_value) == (None, None)
    assert bool(result.notes) == bool((latents < 0).any())  # signed activations


def some_latents(seed=0, tokens=40, latents=15, dtype=np.float64):
    random = np.random.default_rng(seed)
    dense = random.exponential(size=(tokens, latents))
    return np.where(random.random((tokens, latents)) < 0.4, dense, 0.0).astype(dtype)


def some_targets(tokens=40, n=8, seed=0):
    targets = np.zeros(tokens, dtype=bool)
    targets[np.random.default_rng(seed).choice(tokens, n, replace=False)] = True
    return targets


WORDS = np.arange(40) % 20
EXCHANGES = [{}, {"documents": np.repeat([7, 3, 5], [20, 5, 15])}, {"words": WORDS}]


@pytest.mark.parametrize("working_size", [1, 50, 500, 1 << 22])
@pytest.mark.parametrize("given", EXCHANGES, ids=["one document", "documents", "words"])
def test_p_values_equal_exchanging_labels_one_by_one(given, working_size, monkeypatch):
    module = sys.modules["palinka.analyses.category_score"]
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", working_size)
    latents, targets = some_latents(), np.isin(WORDS, some_targets(20, 8).nonzero()[0])
    result = category_score(latents, targets, permutations=60, seed=4, **given)
    exchanged = [targets, *exchange_labels(targets, 60, seed=4, **given)]
    scores = np.array([plain_scores(latents, mask) for mask in exchanged])
    aucs = auc_of_ranks(column_ranks(latents), np.array(exchanged))
    for found, values in ((result.p_value, scores), (result.auc_p_value, aucs)):
        # The observed labels count as one exchange.
        expected = (values.max(axis=1)[1:, None] >= values[0] - 1e-12).sum(axis=0)
        np.testing.assert_allclose(found, (1 + expected) / len(values), rtol=1e-12)


def exchange_labels(targets, permutations, seed=0, words=None, documents=None):
    module = sys.modules["palinka.analyses.category_score"]
    numbers = [None if x is None else np.unique(x, return_inverse=True)[1]
               for x in (words, documents)]  # fmt: skip
    return module._exchange_labels(targets, *numbers, permutations, seed)[0]


def test_one_document_is_shifted_by_every_distance_once():
    targets = some_targets()
    every = [np.roll(targets, distance) for distance in range(1, 40)]
    np.testing.assert_array_equal(exchange_labels(targets, 39), every)
    # Fewer are drawn with equal probabilities, the identity among them.
    some = exchange_labels(np.arange(40) == 0, 38).argmax(axis=1)
    assert len(some) == 38
    many = [exchange_labels(np.arange(40) == 0, 38, seed).argmax(axis=1) for seed in range(300)]
    assert stats.chisquare(np.bincount(np.concatenate(many), minlength=40)).pvalue > 1e-3


def test_documents_are_shifted_apart_from_each_other():
    lengths = [20, 1, 7]
    targets = np.zeros(28, dtype=bool)
    targets[[4, 5, 9, 21]] = True
    shifted = exchange_labels(targets, 4000, documents=np.repeat([3, 9, 1], lengths))
    assert not shifted[:, 20].any()
    first, third = shifted[:, :20], shifted[:, 21:]
    rolls = {tuple(np.roll(targets[:20], distance)): distance for distance in range(20)}
    joint = np.zeros((20, 7), dtype=int)
    np.add.at(joint, ([rolls[tuple(row)] for row in first], third.argmax(axis=1)), 1)
    assert third.sum() == len(shifted)
    assert stats.chisquare(joint.ravel()).pvalue > 1e-3


def test_all_occurrences_of_a_word_keep_one_label():
    targets = np.isin(WORDS, some_targets(20, 8).nonzero()[0])
    exchanged = exchange_labels(targets, 2000, words=WORDS)
    np.testing.assert_array_equal(exchanged[:, :20], exchanged[:, 20:])
    assert (exchanged[:, :20].sum(axis=1) == 8).all()
    assert abs(exchanged.mean(axis=0) - 8 / 20).max() < 4 * np.sqrt(0.24 / 2000)


def half_a_word():
    targets = np.isin(WORDS, some_targets(20, 10).nonzero()[0])
    targets[targets.nonzero()[0][0]] = False
    return targets


@pytest.mark.parametrize(
    ("words", "targets", "whole_words"),
    [
        *((WORDS, np.isin(WORDS, some_targets(20, n).nonzero()[0]), n) for n in (8, 12)),
        *((WORDS, np.isin(WORDS, some_targets(20, n).nonzero()[0]), 0) for n in (7, 13)),
        (np.arange(40), np.arange(40) < 9, 0),  # in one run
        (WORDS, half_a_word(), 0),  # a word inside and outside of the category
    ],
)
def test_the_note_has_what_was_exchanged(words, targets, whole_words):
    (note,) = category_score(some_latents(), targets, permutations=20, words=words).notes
    exchange = f"whole words, {whole_words} of the category"
    assert (exchange if whole_words else "shift the labels circularly") in note


def test_exchanges_that_change_nothing_count_as_equally_good():
    latents = np.array([[0.3, 0.1], [0.1, 0.3]])
    result = category_score(latents, [True, False], permutations=500)
    assert result.p_value[0] == 1.0
    # A latent that is 0 has a score of 0, which every exchange reaches.
    zeros = category_score(np.zeros((4, 2)), [1, 0, 0, 0], permutations=9)
    assert zeros.p_value.tolist() == zeros.auc_p_value.tolist() == [1, 1]


def correlated(random, tokens, latents, rho):
    """Sparse latents of autoregressive logarithms: neighbors are alike."""
    series = random.normal(size=(tokens, latents))
    for token in range(1, tokens):
        series[token] = rho * series[token - 1] + np.sqrt(1 - rho**2) * series[token]
    return np.maximum(np.exp(series) - 0.7, 0)


def in_one_run(random, last=200):
    """The run may reach around the end of the text, as shifted ones do: the null is exact."""
    targets = np.roll(np.arange(200) < 20, random.integers(last))
    return correlated(random, 200, 24, 0.9), targets, {}


def recurring_words(random):
    """Latents follow the word, and frequent words are many tokens."""
    shares = 1 / np.arange(1, 61)
    words = np.unique(random.choice(60, 300, p=shares / shares.sum()), return_inverse=True)[1]
    of_word = random.normal(size=(60, 24))[words]
    latents = np.maximum(of_word + 0.2 * random.normal(size=of_word.shape) - 0.3, 0)
    category = random.choice(words.max() + 1, 10, replace=False)
    return latents, np.isin(words, category), {"words": words}


def smallest_p_values(design, draws, seed):
    """The p-values of the first latents under score and AUC, `(2, draws)`; 200 values each."""
    found = np.empty((2, draws))
    for draw in range(draws):
        latents, targets, given = design(np.random.default_rng([seed, draw]))
        result = category_score(latents, targets, permutations=199, seed=draw, **given)
        numbers = result.scalars()
        found[:, draw] = numbers["best_p_value"], numbers["best_auc_p_value"]
    return found


@pytest.mark.parametrize("design", [in_one_run, recurring_words])
def test_p_is_uniform_under_the_null(design, assert_uniform):
    for p in smallest_p_values(design, 300, seed=1):
        assert_uniform(p, steps=200)


@pytest.mark.slow
def test_the_level_holds_where_the_run_stays_inside_the_text():
    found = smallest_p_values(lambda random: in_one_run(random, 181), 2000, seed=5)
    rates = (found <= 0.05).mean(axis=1)
    assert ((rates > 0.03) & (rates < 0.07)).all()


@pytest.mark.parametrize("design", [in_one_run, recurring_words])
def test_a_preference_is_found(design):
    found = []
    for draw in range(40):
        latents, targets, given = design(np.random.default_rng([3, draw]))
        noise = np.random.default_rng(draw).exponential(size=len(targets))
        latents[:, 3] = 12.0 * targets + noise
        result = category_score(latents, targets, permutations=199, **given)
        found.append((result.p_value[3], result.auc_p_value[3]))
    assert (np.array(found) <= 0.05).mean(axis=0).min() > 0.9


def test_either_ranking_has_a_best_latent_of_its_own():
    targets = some_targets()
    latents = some_latents()
    latents[:, 6] = targets  # never outside: score 0
    latents[:, 2] = np.where(targets, 0.0, 0.1)
    latents[targets.nonzero()[0][0], 2] = 50.0
    result = category_score(latents, targets, permutations=39)
    scalars = result.scalars()
    assert (scalars["best"], scalars["best_auc_unit"], scalars["best_auc"]) == (2, 6, 1.0)
    assert scalars["best_score"] == pytest.approx(500.0)
    assert scalars["best_p_value"] == result.p_value[2]
    assert scalars["best_auc_p_value"] == result.auc_p_value[6] == 1 / 40
    assert result.auc[2] < 0.5
    assert result.auc_p_value[2] > 0.5
    tables = result.tables()
    assert tables["best_latents"]["latent"][0] == 2
    assert tables["best_latents_by_auc"]["latent"][0] == 6
    assert (np.diff(tables["best_latents_by_auc"]["auc"]) <= 0).all()


def test_takes_torch_and_gives_scalars_and_a_table():
    latents = torch.tensor([[4.0, 1.0], [0.0, 1.0], [2.0, 0.0]], dtype=torch.bfloat16)
    targets = torch.tensor([True, False, False])
    result = category_score(latents, targets, detector=True)
    assert result.scalars() == {
        "best": 0, "best_score": 2.0, "best_auc_unit": 0, "best_auc": 1.0,
    }  # fmt: skip
    table = {name: list(values) for name, values in result.tables()["best_latents"].items()}
    assert table == {
        "rank": [1, 2], "latent": [0, 1], "score": [2.0, 1.0], "auc": [1.0, 0.75],
        "coverage": [1.0, 1.0],
    }  # fmt: skip


def test_a_headline_shows_the_floor_of_p_and_the_share_of_the_category():
    targets = some_targets()
    latents = some_latents()
    latents[:, 6] = np.where(targets, 2.0, 0.0)
    latents[targets.nonzero()[0][0], 6] = 0.0
    share = 100 * (1 - 1 / targets.sum())
    line = category_score(latents, targets, permutations=39).headline("latents", ())
    assert f"latent 6, active at {share:.3g} % of the category's tokens, p 0.025, the small" in line
    assert line.endswith(f"all {latents.shape[1]} latents, for this text's words only")
    signed = category_score(-latents, targets, detector=True)
    assert signed.scalars().keys() == {"best_auc_unit", "best_auc"}
    headline = signed.headline("units", ())
    assert "no p-value (set permutations); no unit has a positive score" in headline


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": [False] * 4}, "none of the 4 tokens are targets"),
        ({"targets": [True] * 4}, "all of the 4 tokens are targets"),
        ({"targets": [2, 0, 0, 0]}, "other values than true and false"),
        ({"targets": [True, False]}, r"shape \(2,\) and there are 4 tokens"),
        ({"latents": np.full((4, 2), np.nan)}, "NaN"),
        ({"latents": np.ones(4)}, "shape"),
        ({"words": [1, 2, 3]}, r"words have the shape \(3,\) and there are 4 tokens"),
        ({"documents": [1, 2, 3]}, r"documents have the shape \(3,\) and there are 4 tokens"),
    ],
)
def test_bad_input(change, message):
    given = {"latents": np.ones((4, 2)), "targets": [1, 0, 0, 0], "permutations": 9, **change}
    with pytest.raises(InputError, match=message):
        category_score(**given)
