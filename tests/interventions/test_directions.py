from typing import Any

import numpy as np
import pytest
import torch

from palinka.autoencoders import TopKAutoencoder
from palinka.errors import InputError
from palinka.interventions.directions import (
    contrast_means,
    decoder_rows,
    directions_at,
    logistic_weights,
    token_vectors,
)
from palinka.interventions.pairs import Pairs
from palinka.interventions.study import Study
from palinka.language_models import LanguageModel

SITE = "hidden.1"


def test_vectors_leave_out_the_first_token_of_several(gpt2: LanguageModel) -> None:
    several, one = token_vectors(gpt2, SITE, [[5, 6, 7], [8]])
    np.testing.assert_allclose(several, gpt2.read(torch.tensor([[5, 6, 7]]), SITE)[SITE][0, 1:])
    np.testing.assert_allclose(one, gpt2.read(torch.tensor([[8]]), SITE)[SITE][0])


def test_decoder_rows_are_what_latents_write() -> None:
    torch.manual_seed(0)
    autoencoder = TopKAutoencoder(6, 20, k=3)
    with torch.no_grad():
        autoencoder.decoder_bias.normal_()
    expected = autoencoder.dictionary.detach()[[4, 2]]
    np.testing.assert_allclose(decoder_rows(autoencoder, [4, 2], 6), expected, atol=1e-6)
    with pytest.raises(InputError, match=r"latents \[20\] do not exist; expected 0 to 19"):
        decoder_rows(autoencoder, [3, 20], 6)


def test_texts_of_the_contrast_are_held_out(gpt2: LanguageModel, pairs: Pairs) -> None:
    texts: Any = {"a": [[1, 2]], "b": [pairs.corrupted[2]]}
    with pytest.raises(InputError, match="hold it out"):
        contrast_means(gpt2, SITE, texts, pairs)


def test_a_contrast_needs_two_means(gpt2: LanguageModel) -> None:
    texts: Any = {"a": [[1, 2], [5, 2]], "b": [[3, 2]]}
    with pytest.raises(InputError, match="both conditions of contrast have the same mean activ"):
        contrast_means(gpt2, "hidden.0", {name: [[9, 9]] * 2 for name in texts})
    contrast_means(gpt2, SITE, texts)


def test_a_probe_is_a_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 30, 50)) * 7 + 3
    b[:, 4] += 5
    x = np.concatenate([a, b]) - np.concatenate([a, b]).mean(axis=0)
    scaled = x / np.sqrt(np.mean(x**2))
    fit = linear_model.LogisticRegression(tol=1e-12, solver="newton-cholesky")
    expected = fit.fit(scaled, np.arange(60) >= 30).coef_[0]
    np.testing.assert_allclose(logistic_weights(a, b), expected, atol=1e-9)


def test_earlier_findings_are_directions(gpt2: LanguageModel, pairs: Pairs) -> None:
    width, random = gpt2.width(SITE), np.random.default_rng(0)
    arrays = {"components": random.random((width, 3)), "filters_b": random.random((3, 3)),
              "pattern_b": random.random(width), "null_b": random.random(9)}  # fmt: skip
    study = Study(gpt2, pairs, findings=lambda site, name: {(SITE, "ged"): arrays}[site, name])

    def direction(by: str) -> Any:
        found, _ = directions_at(study, SITE, "", False, (), {"analysis": "ged", "by": by})
        return next(iter(found.items()))

    assert direction("pattern_b")[0] == "pattern_b"
    np.testing.assert_array_equal(direction("pattern_b")[1], arrays["pattern_b"])
    expected = arrays["components"] @ arrays["filters_b"][:, 0]
    np.testing.assert_array_equal(direction("filter_b")[1], expected)
    with pytest.raises(InputError, match=f"ged has no 'null_b' of the {width} units of {SITE}"):
        direction("null_b")
    with pytest.raises(InputError, match="ged has no 'filter_c'"):
        direction("filter_c")
    with pytest.raises(InputError, match="give contrast"):
        directions_at(study, SITE, "", True, [0], None)
