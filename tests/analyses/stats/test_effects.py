from importlib.util import find_spec
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from palinka.analyses.stats import effects as module
from palinka.analyses.stats import similarity
from palinka.analyses.stats.effects import (
    bootstrap_ratios,
    cluster_means,
    cluster_sums,
    sign_flip_test,
)


def statistic(effects):
    return effects.sum() ** 2 / (len(effects) * (effects**2).sum()) if effects.any() else 0.0


def all_patterns(effects):
    """Both p-values of every cell, one pattern of all signs after the other."""
    observed = np.array([statistic(cell) for cell in effects])
    alone, together, patterns = np.zeros(len(effects)), np.zeros(len(effects)), 0
    for signs in product((1.0, -1.0), repeat=effects.shape[1]):
        null = np.array([statistic(cell * signs) for cell in effects])
        alone += null >= observed - 1e-12
        together += null.max() >= observed - 1e-12
        patterns += 1
    return alone / patterns, together / patterns


@settings(max_examples=30, deadline=None)
@given(cells=st.integers(1, 5), clusters=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_few_clusters_have_all_patterns_of_signs(cells, clusters, seed):
    random = np.random.default_rng(seed)
    effects = random.normal(0.5, size=(cells, clusters)).round(random.integers(0, 4))
    found = sign_flip_test(effects, 128, seed)
    np.testing.assert_allclose(found, all_patterns(effects), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 40, 1 << 22])
def test_random_signs_equal_one_pattern_after_the_other(size, monkeypatch):
    monkeypatch.setattr(similarity, "CHUNK_ELEMENTS", size)
    effects = np.random.default_rng(0).normal(0.2, size=(4, 12))
    found = sign_flip_test(effects, 50, seed=3)
    flipped = np.random.default_rng(3).random((50, 12)) < 0.5
    null = np.array([[statistic(np.where(f, -1, 1) * cell) for cell in effects] for f in flipped])
    observed = np.array([statistic(cell) for cell in effects])
    np.testing.assert_allclose(found[0], (1 + (null >= observed).sum(axis=0)) / 51)
    largest = null.max(axis=1)
    np.testing.assert_allclose(found[1], [(1 + (largest >= o).sum()) / 51 for o in observed])


def test_smallest_p_and_no_effect():
    effects = np.array([np.ones(6), np.zeros(6), np.array([0.1, 0.2, -0.3, 0.0, 0.0, 0.0])])
    p, corrected = sign_flip_test(effects, 32, 0)
    assert p.tolist() == [1 / 32, 1.0, 1.0]  # the last one's sum is not exactly 0
    assert corrected.tolist() == [1 / 32, 1.0, 1.0]


def test_random_and_exact_tests_agree():
    effects = np.random.default_rng(2).normal(0.3, size=(5, 11))
    exact, drawn = sign_flip_test(effects, 1024, 0), sign_flip_test(effects, 1023, 0)
    np.testing.assert_allclose(exact, drawn, atol=0.06)
    assert not np.array_equal(exact, drawn)


@pytest.mark.skipif(find_spec("transformer_lens") is None, reason="needs transformer_lens")
@settings(max_examples=20, deadline=None)
@given(clusters=st.integers(2, 12), seed=st.integers(0, 2**32 - 1))
def test_equals_transformer_lens(clusters, seed):
    import torch
    from transformer_lens.utilities.statistics import sign_flip_permutation_pvalue

    effects = np.random.default_rng(seed).normal(0.3, size=(3, clusters))
    theirs = sign_flip_permutation_pvalue(torch.from_numpy(effects))
    np.testing.assert_allclose(sign_flip_test(effects, 4096, 0)[0], theirs.numpy(), rtol=1e-12)


def test_sums_and_means_of_clusters():
    cluster, values = np.array(["b", "a", "b", "c"]), np.array([[1.0, 2.0, 4.0, 8.0]])
    assert cluster_sums(values, cluster).tolist() == [[2.0, 5.0, 8.0]]
    assert cluster_means(values, cluster).tolist() == [[2.0, 2.5, 8.0]]


@pytest.mark.parametrize("size", [1, 1 << 22])
def test_bootstrap_equals_one_resample_after_the_other(size, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", size)
    random = np.random.default_rng(1)
    above, below = random.normal(1.0, size=(3, 7)), random.normal(5.0, size=7)
    found = bootstrap_ratios(above, below, 0.9, 40, seed=5)
    ratios = []
    for counts in np.random.default_rng(5).multinomial(7, np.full(7, 1 / 7), size=40):
        drawn = np.repeat(np.arange(7), counts)
        ratios.append([cell[drawn].sum() / below[drawn].sum() for cell in above])
    np.testing.assert_allclose(found, np.quantile(ratios, [0.05, 0.95], axis=0))


def test_one_cluster_has_no_interval():
    assert np.isnan(bootstrap_ratios(np.ones((2, 1)), np.ones(1), 0.95, 100, 0)).all()
    assert np.isnan(bootstrap_ratios(np.ones((2, 9)), np.ones(9), 0.95, 0, 0)).all()


def layered_noise(random, prompts):
    """Correlated noise without effects on a map of 12 layers and 15 positions, t with 3 degrees."""
    noise = random.standard_t(3, size=(12, 15, prompts))
    return (np.cumsum(noise, axis=0) + 2.0 * random.standard_t(3, size=prompts)).reshape(180, -1)


@pytest.mark.slow
def test_null_maps_have_the_family_wise_error_of_the_level(assert_uniform):
    random = np.random.default_rng(0)
    found = [sign_flip_test(layered_noise(random, 20), 1000, map_) for map_ in range(2000)]
    errors = np.mean([(corrected <= 0.05).any() for _, corrected in found])
    assert 0.04 <= errors <= 0.06
    one = np.array([p[77] for p, _ in found])
    assert stats.kstest(one, "uniform").pvalue > 0.01
    assert_uniform(one, 1001)


@pytest.mark.slow
def test_flips_of_templates_hold_the_level_and_flips_of_prompts_do_not():
    random, template = np.random.default_rng(1), np.repeat(np.arange(10), 6)
    rejected = np.zeros(2)
    for seed in range(2000):
        shared = random.normal(size=(20, 10))[:, template]
        effects = np.sqrt(0.5) * (shared + random.normal(size=(20, 60)))
        means = cluster_means(effects, template)
        tests = (sign_flip_test(each, 1000, seed)[1] for each in (means, effects))
        rejected += [(corrected <= 0.05).any() for corrected in tests]
    by_template, by_prompt = rejected / 2000
    assert 0.04 <= by_template <= 0.06
    assert by_prompt > 0.15


@pytest.mark.slow
def test_intervals_of_the_recovery_cover_it():
    random, covered, recovery = np.random.default_rng(2), 0, 0.4
    for seed in range(2000):
        gaps = 4.0 + random.normal(size=20) + 0.5 * random.normal(size=(6, 20))
        noise = 0.8 * random.normal(size=20) + random.normal(size=(6, 20))
        above, below = (recovery * gaps + noise).sum(axis=0), gaps.sum(axis=0)
        low, high = bootstrap_ratios(above[None], below, 0.95, 1000, seed)
        covered += low[0] <= recovery <= high[0]
    assert 0.92 <= covered / 2000 <= 0.97
