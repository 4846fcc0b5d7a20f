import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palinka.analyses.stats.latents import nearest_latents
from palinka.errors import InputError


@given(
    seed=st.integers(0, 2**31),
    latents=st.integers(1, 9),
    n=st.integers(1, 10),
    piece=st.integers(1, 30),
)
def test_it_agrees_with_all_pairs(seed: int, latents: int, n: int, piece: int) -> None:
    random = np.random.default_rng(seed)
    dictionary = random.normal(size=(latents, 3)) * random.integers(0, 2, (latents, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(nearest_latents.__globals__, "PIECE", piece)
        found = nearest_latents(dictionary, n)
    for latent, (others, cosines) in enumerate(zip(found.latents, found.cosines, strict=True)):
        pairs = []
        for other in range(latents):
            norms = np.linalg.norm(dictionary[latent]) * np.linalg.norm(dictionary[other])
            if other != latent:
                cosine = dictionary[latent] @ dictionary[other] / norms if norms else 0.0
                pairs.append((other, cosine))
        expected = sorted((cosine for _, cosine in pairs), reverse=True)[:n]
        assert cosines == pytest.approx(expected, abs=1e-6)
        known = dict(pairs)
        assert cosines == pytest.approx([known[int(other)] for other in others], abs=1e-6)
        assert len(set(others.tolist())) == len(others) == min(n, latents - 1)


def test_of_equal_ones_the_lower_number_comes_first() -> None:
    found = nearest_latents([[1.0, 0.0]] * 4, 2)
    assert found.latents.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


def test_none_are_refused() -> None:
    with pytest.raises(InputError, match="ask for at least 1"):
        nearest_latents([[1.0]], 0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_length_does_not_matter(scale: float) -> None:
    dictionary = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    found, expected = nearest_latents(dictionary * scale, 2), nearest_latents(dictionary, 2)
    assert found.latents.tolist() == expected.latents.tolist()
    np.testing.assert_allclose(found.cosines, expected.cosines, atol=1e-6)
