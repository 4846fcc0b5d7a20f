import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import multivariate_normal

from palinka.data import Correlation, Firing, Hierarchy, StructuredData, mean_max_cosine
from palinka.data import synthetic as recovery
from palinka.errors import InputError

TREES = Hierarchy(3, 2, 2)
ROWS = 40_000


def assert_rates(active: torch.Tensor, expected: Any) -> None:
    """Within 4 standard errors."""
    rates, p = active.double().mean(dim=0).numpy(), np.asarray(expected)
    error = np.sqrt(p * (1 - p) / len(active))
    assert np.abs((rates - p) / error).max() < 4.0


def test_rows_are_combinations_of_the_directions() -> None:
    data = StructuredData(30, 12, Firing(0.3, 0.1), bias=2.0)
    x, latents = data.sample(50, seed=1)
    assert data.offset.norm().item() == pytest.approx(2.0)
    torch.testing.assert_close(data.directions.norm(dim=1), torch.ones(30))
    assert x.dtype == latents.dtype == torch.float32
    torch.testing.assert_close(x, latents @ data.directions + data.offset)


def test_frequencies_follow_zipf_and_children_make_up_for_the_hierarchy() -> None:
    most, least, a, n = 0.2, 0.01, 0.5, 19
    data = StructuredData(n, 8, Firing(most, least, a), hierarchy=TREES)
    p = [least + (most - least) * (i**-a - n**-a) / (1 - n**-a) for i in range(1, n + 1)]
    np.testing.assert_allclose(data.frequencies, p, rtol=1e-12)
    parents = [-1, -1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    assert data.parents.tolist() == parents
    for i, parent in enumerate(parents):
        factor = 1.0
        if parent >= 0:
            siblings = sum(p[j] for j in range(n) if parents[j] == parent and j != i)
            factor = 1 / p[parent] * (1 + siblings / p[parent])
        assert data.drawn_frequencies[i] == pytest.approx(min(1.0, p[i] * factor))
    assert StructuredData(1, 8, Firing(0.3, 0.2)).frequencies.tolist() == [0.3]
    with pytest.warns(UserWarning, match="cannot be so frequent"):
        StructuredData(n, 8, Firing(0.9, 0.8), hierarchy=TREES).sample(1, 0)


def test_the_formulas_are_those_of_sae_lens() -> None:
    pytest.importorskip("sae_lens.synthetic")
    from sae_lens.synthetic.feature_dictionary import orthogonalize_embeddings
    from sae_lens.synthetic.firing_probabilities import zipfian_firing_probabilities
    from sae_lens.synthetic.hierarchy.config import HierarchyConfig
    from sae_lens.synthetic.hierarchy.hierarchy import generate_hierarchy

    data = StructuredData.small()
    p = zipfian_firing_probabilities(512, 0.5, 0.4, 4e-3)
    np.testing.assert_allclose(data.frequencies, p, atol=1e-7)
    trees = generate_hierarchy(512, HierarchyConfig(16, 4, 2, mutually_exclusive_portion=1.0))
    factors = trees.compute_probability_correction_factors(torch.from_numpy(data.frequencies))
    drawn = np.minimum(1.0, data.frequencies * factors.numpy())
    np.testing.assert_allclose(data.drawn_frequencies, drawn, rtol=1e-7)
    start = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    theirs = orthogonalize_embeddings(start, 100, 3e-4)
    torch.testing.assert_close(recovery.nearly_orthogonal(start), theirs, atol=2e-6, rtol=0)


def test_features_without_parents_keep_their_frequency_and_correlate() -> None:
    data = StructuredData(12, 8, Firing(0.4, 0.05), correlation=Correlation(2, 0.6))
    active = data.sample(ROWS, seed=3).latents > 0
    assert_rates(active, data.frequencies)
    factor, own = data._factor
    assert (own > 0.09).all()
    assert (own < 0.11).any()
    normal = (factor @ factor.T).double().numpy()
    bounds = ndtri(data.frequencies)  # of the negative variables
    for i, j in ((0, 1), (2, 11), (5, 6)):
        both = multivariate_normal([0, 0], [[1, normal[i, j]], [normal[i, j], 1]])
        assert_rates(active[:, [i]] & active[:, [j]], [both.cdf(bounds[[i, j]])])


@pytest.mark.parametrize("exclusive", [False, True])
def test_children_need_their_parent_and_exclusive_ones_draw_a_winner(exclusive: bool) -> None:
    # The last parent has one child only.
    data = StructuredData(20, 8, Firing(0.4, 0.02), hierarchy=Hierarchy(2, 3, 2, exclusive))
    active = data.sample(ROWS, seed=5).latents > 0
    drawn, parents = data.drawn_frequencies, data.parents
    expected = drawn.copy()
    for i in np.flatnonzero(parents >= 0):
        siblings = [j for j in np.flatnonzero(parents == parents[i]) if j != i]
        share = 0.0
        for others in product([False, True], repeat=len(siblings)):
            chance = math.prod(
                drawn[j] if on else 1 - drawn[j] for j, on in zip(siblings, others, strict=True)
            )
            share += chance / (1 + sum(others) * exclusive)
        expected[i] = expected[parents[i]] * drawn[i] * share
        assert not (active[:, i] & ~active[:, parents[i]]).any()
        if exclusive:
            assert not (active[:, [i]] & active[:, siblings]).any()
    assert_rates(active, expected)
    if not exclusive:
        np.testing.assert_allclose(expected, data.frequencies)


def test_strengths_have_means_and_deviations_of_each_feature() -> None:
    data = StructuredData(5, 8, Firing(0.9, 0.8))
    latents = data.sample(ROWS, seed=0).latents
    for feature, (mean, deviation) in enumerate(zip(*data._strengths, strict=True)):
        own = latents[:, feature][latents[:, feature] > 0]
        assert own.mean().item() == pytest.approx(5 - feature / 4, abs=0.05)
        assert own.mean().item() == pytest.approx(mean.item(), abs=0.05)
        assert own.std().item() == pytest.approx(deviation.item(), abs=0.05)


def test_directions_are_moved_apart_by_adam() -> None:
    start = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.normalize(start).requires_grad_()
    adam = torch.optim.Adam([x], 3e-4)
    for _ in range(100):
        products = x @ x.T
        squares = (products - torch.diag(products.diag())).square().sum()
        adam.zero_grad()
        (squares + 20 * (products.diag() - 1).square().sum()).backward()
        adam.step()
    expected = torch.nn.functional.normalize(x.detach())
    torch.testing.assert_close(recovery.nearly_orthogonal(start), expected, atol=2e-6, rtol=0)


def test_presets_have_the_published_sizes() -> None:
    small, large = StructuredData.small(), StructuredData.synthsaebench_16k()
    assert [(d.parents >= 0).sum() + d.hierarchy.roots for d in (small, large)] == [336, 10_880]
    assert (small.width, large.width) == (64, 768)
    large = replace(large, width=4)  # whose directions take no time
    assert large.sample(1000, 0).latents.count_nonzero() / 1000 == pytest.approx(34, abs=1.5)


def test_noise_has_the_standard_deviation_that_was_asked_for() -> None:
    quiet = StructuredData(6, 10, Firing(0.3, 0.1))
    noisy = StructuredData(6, 10, Firing(0.3, 0.1), noise=0.25)
    (clean, latents), (x, same) = quiet.sample(5000, 3), noisy.sample(5000, 3)
    assert torch.equal(latents, same)
    assert (x - clean).std().item() == pytest.approx(0.25, rel=0.03)


def test_seeds_alone_choose_directions_and_samples() -> None:
    data, other = (StructuredData(9, 5, Firing(0.4, 0.1), seed=seed) for seed in (4, 5))
    state = torch.get_rng_state()
    again = StructuredData(9, 5, Firing(0.4, 0.1), seed=4)
    assert torch.equal(data.sample(7, 1).x, again.sample(7, 1).x)
    assert not torch.equal(data.sample(7, 1).x, data.sample(7, 2).x)
    assert not torch.equal(data.directions, other.directions)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"firing": Firing(0.1, 0.2)}, "0 < least <= most <= 1"),
        ({"firing": Firing(0.2, 0.1, 0.0)}, "an exponent above 0"),
        ({"hierarchy": Hierarchy(9, 2, 1)}, "9 roots exceed 8 features"),
    ],
)
def test_bad_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        StructuredData(**{"features": 8, "width": 4, "firing": Firing(0.2, 0.1), **wrong})


def plain(dictionary: torch.Tensor, directions: torch.Tensor) -> float:
    """Pair by pair, as it is defined."""
    best = []
    for direction in directions.tolist():
        cosines = []
        for latent in dictionary.tolist():
            product = sum(a * b for a, b in zip(direction, latent, strict=True))
            norms = math.hypot(*direction) * math.hypot(*latent)
            cosines.append(product / norms if norms > 0 else 0.0)
        best.append(max(cosines))
    return sum(best) / len(best)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 40),
    st.integers(0, 1000),
)  # fmt: skip
def test_it_is_the_plain_definition_whatever_the_block(
    latents: int, features: int, width: int, block: int, seed: int
) -> None:
    torch.manual_seed(seed)
    dictionary = torch.randn(latents, width, dtype=torch.float64)
    dictionary[seed % latents] *= seed % 3
    directions = torch.randn(features, width, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery, "_CHUNK", block)
        assert mean_max_cosine(dictionary, directions) == pytest.approx(
            plain(dictionary, directions), abs=1e-12
        )
