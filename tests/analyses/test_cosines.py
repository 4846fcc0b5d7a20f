"""Cosine similarities at the edges of what numbers can hold."""

import numpy as np
import pytest

from palinka.analyses.stats.similarity import cosine_similarity


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1.0, 1e200, 1e308])
def test_length_does_not_matter(scale):
    x = np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    half = np.sqrt(0.5)
    expected = [[1, half, -1, 0], [half, 1, -half, 0], [-1, -half, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(cosine_similarity(x * scale), expected, atol=1e-12)


def test_is_exactly_symmetric_with_ones_on_the_diagonal():
    similarity = cosine_similarity(np.random.default_rng(0).normal(size=(40, 700)))
    assert (similarity == similarity.T).all()
    assert (similarity.diagonal() == 1.0).all()
    assert np.abs(similarity).max() <= 1.0
